"""The memory that XNNPACK plans for a delegate: rules one by one, and as it is measured."""

from __future__ import annotations

from typing import Any

import pytest
from executorch.backends.xnnpack.serialization import xnnpack_graph_schema as schema
from hypothesis import given
from hypothesis import strategies as st

from pfl_exporters.lowering.workspace import _laid_out, _Place, workspace_bytes

NONE = 2**32 - 1
#: Numbers of a matrix, in bytes.
MATRIX = 128 * 64 * 4


class Graph:
    """A graph of XNNPACK, value by value."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.nodes: list[Any] = []

    def value(self, *dims: int, outside: bool = False, constant: bool = False) -> int:
        number = len(self.values)
        external = number if outside else NONE
        kind = schema.XNNDatatype.xnn_datatype_fp32
        self.values.append(
            schema.XNNTensorValue(kind, len(dims), list(dims), int(constant), external, 0, number)
        )
        return number

    def add(self, kind: Any, *ids: int, dims: tuple[int, ...] = (128, 64), outside: bool = False) -> int:
        made = self.value(*dims, outside=outside)
        if kind is schema.XNNFullyConnected:
            self.nodes.append(kind(ids[0], ids[1], NONE, made, 0))
        else:
            self.nodes.append(kind(*ids, made, 0))
        return made

    @property
    def bytes(self) -> int:
        nodes = [schema.XNode(node, 0) for node in self.nodes]
        values = [schema.XValue(value) for value in self.values]
        return workspace_bytes(schema.XNNGraph("0", nodes, values, 0, [], [], []))


def test_what_comes_from_outside_or_goes_there_takes_nothing() -> None:
    graph = Graph()
    graph.add(schema.XNNFloor, graph.value(128, 64, outside=True), outside=True)
    assert graph.bytes == 0


def test_elementwise_operators_write_where_their_operand_was() -> None:
    graph = Graph()
    first = graph.add(schema.XNNFloor, graph.value(128, 64, outside=True))
    second = graph.add(schema.XNNAbs, first)
    graph.add(schema.XNNFloor, second, outside=True)
    assert graph.bytes == MATRIX


@pytest.mark.parametrize("twice", ["operand", "result"])
def test_but_not_where_one_of_the_two_is_read_twice(twice: str) -> None:
    graph = Graph()
    first = graph.add(schema.XNNFloor, graph.value(128, 64, outside=True))
    second = graph.add(schema.XNNAbs, first)
    graph.add(schema.XNNMultiply, second, first if twice == "operand" else second, outside=True)
    assert graph.bytes == 2 * MATRIX


def test_what_grows_by_its_operator_has_a_place_of_its_own() -> None:
    graph = Graph()
    row = graph.add(schema.XNNFloor, graph.value(1, 64, outside=True), dims=(1, 64))
    graph.add(
        schema.XNNAbs, graph.add(schema.XNNMultiply, row, graph.value(128, 64, outside=True)), outside=True
    )
    assert graph.bytes == MATRIX + 64 * 4


@pytest.mark.parametrize("constant", [True, False])
def test_a_product_packs_its_right_side_unless_that_is_a_constant(constant: bool) -> None:
    graph = Graph()
    x = graph.value(10, 64, outside=True)
    weight = graph.value(128, 64, outside=not constant, constant=constant)
    graph.add(schema.XNNFullyConnected, x, weight, dims=(10, 128), outside=True)
    assert graph.bytes == (0 if constant else MATRIX + 128 * 4)


def test_places_that_are_free_again_are_taken() -> None:
    """Three values in a row, each made of the one before, which is then free."""
    places = [_Place(0, 1, 100), _Place(1, 2, 60), _Place(2, 3, 90)]
    assert _laid_out(places) == 160


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6), st.integers(1, 1000)), max_size=30))
def test_places_take_between_what_is_there_at_once_and_all(pieces: list[tuple[int, int, int]]) -> None:
    places = [_Place(first, first + length, size) for first, length, size in pieces]
    at_once = max((sum(p.size for p in places if p.first <= step <= p.last) for step in range(30)), default=0)
    assert at_once <= _laid_out(places) <= sum(place.size for place in places)
