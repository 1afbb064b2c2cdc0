"""What the tests of our kernels in C have in common."""

import shutil
import sysconfig

import pytest

NAMES = ["DEFAULT", "AVX2", "AVX512"]
"""torch's names of what there is to compute with; what this machine lacks is replaced by less."""

COMPILER = str(sysconfig.get_config_var("CC")).split()[0]

# with a compiler, kernels that were not built are a fault
needs_compiler = pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason="there is no C compiler to build the kernels with"
)
