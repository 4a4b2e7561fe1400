"""`rollcall bench weights`: what its times mean, and that a publication goes through the real processes."""

from __future__ import annotations

import json

import pytest

from rollcall.cluster.errors import BadInput
from rollcall.deploy.tools.bench import weights as bench_weights
from tests.runs import BENCH_KEYS, Bench


def publication(copy_s: float = 0.010) -> dict[str, float]:
    """Read out in 30 ms (8 of them for the checksum), in the store 50 ms later; at hand 70 ms after that."""
    whens = {"began": 5.0, "read_out": 5.030, "handed_over": 5.080, "published": 5.140}
    whens |= {"received": 5.150, "applied": 5.160}
    return {**whens, "copy": copy_s, "checksum": 0.008, "store": 0.045, "size_bytes": 100e6}


def test_publish_transfer_checksum_and_apply_add_up_to_the_total() -> None:
    found = bench_weights.summarise([publication()])
    parts = {name: found[f"{name}_ms"] for name in ("publish", "transfer", "checksum", "apply")}
    assert parts == pytest.approx({"publish": 72.0, "transfer": 62.0, "checksum": 16.0, "apply": 10.0}, abs=1e-3)
    assert sum(parts.values()) == pytest.approx(found["total_ms"], abs=1e-3)
    assert found["total_ms"] == pytest.approx(160.0, abs=1e-3)
    assert (found["flat_copy_ms"], found["into_store_ms"]) == pytest.approx((22.0, 50.0), abs=1e-3)
    assert found["ratio"] == pytest.approx(10 / 160, abs=1e-4)


def test_the_typical_publication_counts_and_its_parts_still_add_up() -> None:
    """Medians of the parts would not: here each part's median is of another publication."""
    slow_transfer = {**publication(), "received": 5.550, "applied": 5.560}
    slow_apply = {**publication(copy_s=1.0), "applied": 5.260}
    found = bench_weights.summarise([publication(), slow_transfer, slow_apply])
    assert (found["total_ms"], found["apply_ms"], found["copy_ms"]) == pytest.approx((260, 110, 10), abs=1e-3)
    parts = ("publish_ms", "transfer_ms", "checksum_ms", "apply_ms")
    assert sum(found[name] for name in parts) == pytest.approx(found["total_ms"], abs=1e-3)


def test_the_result_is_of_the_largest_model() -> None:
    small = bench_weights.summarise([{**publication(), "size_bytes": 1e6}])
    large = bench_weights.summarise([publication()])
    result = bench_weights._result([large, small])
    assert result["bound"] == 10_000 and result["achieved"] == 625  # 100 MB in 10 ms, and in 160
    assert result["ratio_to_bound"] == 0.0625 and result["unit"] == "MB/s"
    assert result["limiter"].startswith("publish (publish 72.0 ms, transfer 62.0 ms, checksum 16.0 ms, apply 10.0 ms")


@pytest.mark.parametrize("megabytes", [0.1, 1, 10, 100])
def test_a_model_has_about_the_size_that_was_asked_for(megabytes: float) -> None:
    size = sum(p.numel() * 4 for p in bench_weights.qwen3_like(round(megabytes * 1e6)).parameters())
    assert size == pytest.approx(megabytes * 1e6, rel=0.25)


@pytest.mark.parametrize("text", ["", "ten", "1,,2", "0", "1000"])
def test_sizes_that_cannot_be_measured_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="must be megabytes"):
        bench_weights._sizes(text)


@pytest.mark.prove
def test_a_publication_goes_through_the_real_processes(bench: Bench) -> None:
    done = bench.start("bench", "weights", "--sizes", "0.05,1", "--repeats", "1", "--json").wait(280)
    assert done.process.returncode == 0, done.errors
    result = json.loads(done.output)  # nothing else is printed
    assert result.keys() >= BENCH_KEYS
    inline, through_the_store = result["sizes"]  # Ray sends the smaller one within the reply
    assert inline["size_bytes"] < 100_000 < through_the_store["size_bytes"]
    for item in result["sizes"]:
        assert 0 < item["copy_ms"] < item["total_ms"] and item["apply_ms"] > 0 and item["transfer_ms"] > 0
