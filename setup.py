"""The one thing that pyproject.toml cannot say yet: what is compiled."""

from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("curvserve/engine/native")

setup(
    ext_modules=[
        Extension(
            "curvserve.engine.native._kernels",
            sorted(map(str, NATIVE.glob("*.c"))),
            depends=sorted(map(str, NATIVE.glob("*.h"))),
            extra_compile_args=["-O3"],
            optional=True,  # without a C compiler torch computes in its place
        )
    ]
)
