"""Copy the inputs into the output directory, under their base names."""
from processor_kit import copy_files

copy_files()
