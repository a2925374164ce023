"""Layers whose matrix products are bilinear schemes on tiles, and the conversion of whole models to them."""

from __future__ import annotations

from stl_search.nn.convert import CANDIDATES, Config, Report, Row, Survey, convert_, survey, unconvert_
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
    "Survey",
    "convert_",
    "survey",
    "unconvert_",
]
