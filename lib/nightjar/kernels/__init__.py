"""Pure NumPy and SciPy: no engine, no I/O."""
