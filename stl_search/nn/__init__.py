"""Layers whose matrix products are bilinear schemes on tiles, and the conversion of whole models to them."""

from __future__ import annotations

from stl_search.nn.convert import CANDIDATES, Config, Report, Row, convert_, unconvert_
from stl_search.nn.layers import Encoders, STLConv2d, STLLayer, STLLinear

__all__ = [
    "CANDIDATES",
    "Config",
    "Encoders",
    "Report",
    "Row",
    "STLConv2d",
    "STLLayer",
    "STLLinear",
    "convert_",
    "unconvert_",
]
