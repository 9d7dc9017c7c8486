"""Upper-case all text of the inputs into result.txt; bytes that are not UTF-8 pass unchanged."""
from processor_kit import blocks

blocks(str.upper, "result.txt", one_to_one=True, errors="surrogateescape")
