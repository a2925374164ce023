"""Groups over Z2 by name: they keep the matmul tensor, form groups, and act as the transforms of schemes do."""

import itertools

import numpy as np
import pytest

from stl_search.errors import UsageError
from stl_search.scheme import Scheme, Shape
from stl_search.search.flips import Group
from stl_search.search.symmetry_gf2 import Gf2Action, compose, gf2_action, image
from stl_search.transform import change_basis, classical, cyclic, transpose
from stl_search.verify import first_failure

CASES = [
    ("cyclic", (3, 3, 3), 3),
    ("transpose", (2, 3, 2), 2),
    ("transpose:(1,2)", (2, 2, 2), 2),
    ("cyclic+transpose", (2, 2, 2), 6),
    ("permute:(1,2)/()/(1,2,3)", (2, 1, 3), 6),
    ("permute:(1,2,3)(4,5)", (5, 5, 5), 6),
    ("cyclic+permute:(1,2)", (3, 3, 3), 6),
    ("linear:01/11", (2, 2, 2), 3),
    ("linear:01/11+permute:(1,2)", (2, 2, 2), 6),
    ("cyclic+linear:010/001/101", (3, 3, 3), 21),
]


def random_scheme(shape: Shape, rank: int = 4) -> Scheme:
    m, k, n = shape
    rng = np.random.default_rng(0)
    factors = [rng.integers(0, 2, size=(rank, *s)) for s in ((m, k), (k, n), (m, n))]
    return Scheme(shape, "Z2", *factors)


@pytest.fixture(params=CASES, ids=lambda c: f"{c[0]} {c[1]}")
def acting(request: pytest.FixtureRequest) -> Gf2Action:
    name, shape, _ = request.param
    return gf2_action(name, shape)


@pytest.mark.parametrize(("name", "shape", "order"), CASES)
def test_orders(name: str, shape: Shape, order: int) -> None:
    assert gf2_action(name, shape).order == order


def test_images_of_an_exact_scheme_are_exact(acting: Gf2Action) -> None:
    scheme = classical(acting.shape, "Z2")
    for element in acting.elements:
        assert first_failure(image(element, scheme)) is None


def test_images_close_up(acting: Gf2Action) -> None:
    scheme = random_scheme(acting.shape)
    images = [image(e, scheme).id for e in acting.elements]
    assert images[0] == scheme.id
    for f in acting.elements:
        assert sorted(image(f, image(e, scheme)).id for e in acting.elements) == sorted(images)


def test_a_product_acts_as_one_element_after_the_other(acting: Gf2Action) -> None:
    scheme = random_scheme(acting.shape)
    for f, g in itertools.product(acting.elements[:6], repeat=2):
        assert image(compose(f, g), scheme).id == image(f, image(g, scheme)).id


def test_the_flip_graph_takes_the_elements(acting: Gf2Action) -> None:
    group = Group.of(acting.elements)
    assert group.order == acting.order
    scheme = random_scheme(acting.shape, 1)
    bits = [1 << np.arange(f.size) for f in scheme.factors]
    term = [int(f.ravel().astype(int) @ b) for f, b in zip(_trace_form(scheme), bits, strict=True)]
    for e in range(group.order):
        moved = image(acting.elements[e], scheme)
        assert group.image(e, term) == tuple(
            int(f.ravel().astype(int) @ (1 << np.arange(f.size))) for f in _trace_form(moved)
        )


def _trace_form(scheme: Scheme) -> list[np.ndarray]:
    return [scheme.u[0], scheme.v[0], scheme.w[0].T]


def test_names_mean_what_the_transforms_do() -> None:
    square, flat = random_scheme((3, 3, 3)), random_scheme((2, 3, 2))
    assert cyclic(square).id in [image(e, square).id for e in gf2_action("cyclic", (3, 3, 3)).elements[1:]]
    assert image(gf2_action("transpose", (2, 3, 2)).elements[1], flat).id == transpose(flat).id
    x = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 1]])
    turned = change_basis(square, x.T, x.T, x.T).id
    images = [image(e, square).id for e in gf2_action("linear:010/001/101", (3, 3, 3)).elements]
    assert images.count(turned) == 1
    y = np.array([[0, 1], [1, 0]])
    moved = image(gf2_action("permute:(1,2)/()/()", (2, 3, 2)).elements[1], flat)
    assert moved.id == change_basis(flat, y, np.eye(3, dtype=int), np.eye(2, dtype=int)).id


def test_what_keeps_no_tensor_or_is_no_group_is_refused() -> None:
    group = gf2_action("cyclic", (2, 2, 2))
    one, turn = group.elements[0], group.elements[1]
    swap = np.eye(4, dtype=int)[[1, 0, 2, 3]]
    with pytest.raises(UsageError, match="element 1 of 'x' does not keep the tensor of <2,2,2> modulo 2"):
        Gf2Action("x", (2, 2, 2), (one, ((0, 1, 2), (swap, *one[1][1:]))))
    with pytest.raises(UsageError, match="the 2 elements of 'x' form no group"):
        Gf2Action("x", (2, 2, 2), (one, turn))
    with pytest.raises(UsageError, match="wrong sizes for <2,3,2>"):
        Gf2Action("x", (2, 3, 2), (one,))


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("cyclic", (2, 2, 3), "needs a square shape"),
        ("transpose", (2, 2, 3), "needs a shape M,K,M"),
        ("S3", (2, 2, 2), "no symmetry 'S3' over Z2; known: cyclic, transpose"),
        ("permute:(1,4)", (3, 3, 3), "points 1 to 3"),
        ("permute:(1,2)(2,3)", (3, 3, 3), "disjoint"),
        ("permute:(1,2)/()", (3, 3, 3), "once, or for m, k and n"),
        ("permute:1,2", (3, 3, 3), "write cycles like"),
        ("linear:01/11", (2, 3, 2), "needs a square shape"),
        ("linear:01/1", (2, 2, 2), "write 2 rows of 2 bits"),
        ("linear:11/11", (2, 2, 2), "not invertible"),
        ("permute:(1,2,3,4,5)+permute:(1,2)", (5, 5, 5), "more than 64"),
    ],
)
def test_bad_names_are_refused(name: str, shape: Shape, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        gf2_action(name, shape)
