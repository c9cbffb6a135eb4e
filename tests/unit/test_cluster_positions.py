"""Unit: the positions of a runner in the streams of its cluster."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from actors.cluster.record.positions import Position, Positions


def test_several_threads_keep_their_positions(tmp_path):
    positions = Positions.open(tmp_path / "cluster.db")

    def keep(name):
        for number in range(40):
            positions.put(name, Position(number, "stream"))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(keep, "abcd"))

    assert [positions.get(name) for name in "abcd"] == [Position(39, "stream")] * 4
    assert positions.get("e") == Position()
    positions.close()
