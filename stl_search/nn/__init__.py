"""Layers whose matrix products are bilinear schemes on tiles, and the conversion of whole models to them."""

from __future__ import annotations

from stl_search.nn.layers import Encoders, STLConv2d, STLLayer, STLLinear

__all__ = ["Encoders", "STLConv2d", "STLLayer", "STLLinear"]
