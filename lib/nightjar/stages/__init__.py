"""One file per stage of the night, same names as jobs/ and the declarations in pipeline.py."""
