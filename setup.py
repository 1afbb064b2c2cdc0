"""The one thing that pyproject.toml cannot say yet: what is compiled."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "curvserve.engine.native._squares",
            ["curvserve/engine/native/squares.c"],
            depends=["curvserve/engine/native/squares.h"],
            extra_compile_args=["-O3"],
            optional=True,  # without a C compiler torch computes in its place
        )
    ]
)
