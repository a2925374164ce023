"""The runtime: matrix products by schemes (``amm``), operands encoded in advance, and the choice between schemes."""
