"""Benchmarks against peers and the machine's own limit; commands, off by default."""

import os

# What holds a library to older instructions would slow one contestant more than the other: it is taken away
# here, before any module of the package loads one.
_HOLDS_BACK = """OPENBLAS_CORETYPE MKL_DEBUG_CPU_TYPE MKL_ENABLE_INSTRUCTIONS MKL_CBWR ONEDNN_MAX_CPU_ISA
DNNL_MAX_CPU_ISA ATEN_CPU_CAPABILITY NPY_DISABLE_CPU_FEATURES"""
for _name in _HOLDS_BACK.split():
    os.environ.pop(_name, None)
