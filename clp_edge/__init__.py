"""clp-edge: cut transformer blocks, mend the cut, quantize, export, prove and measure.

Importing this package costs nothing: torch is imported only by the rooms that compute.
"""

__version__ = "0.1.0"
