"""Where the time of a step goes, from a trace and a program that are written here."""

import gzip
import json
from pathlib import Path

import pytest

from scripts.gpu.kernels import op_names, read_trace, summary

PROGRAM = """\
HloModule jit_train_step

%fused (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  ROOT %a = f32[2]{0} add(%p, %p), metadata={op_name="jit(step)/jvp(Transformer)/layers/feed_forward/add"}
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  %loop_add_fusion.3 = f32[2]{0} fusion(%x), kind=kLoop, calls=%fused
  %joined.7 = f32[4]{0} concatenate(%loop_add_fusion.3, %x), dimensions={0}
  ROOT %dot.1 = f32[] dot(%joined.7, %joined.7), metadata={op_name="jit(train_step)/jvp(LMHead)/dot_general"}
}
"""


def test_an_instruction_without_a_place_has_that_of_what_it_fuses_or_of_what_reads_it() -> None:
    names = op_names(PROGRAM)
    assert names["loop_add_fusion_3"].endswith("feed_forward/add")
    assert names["joined.7"].endswith("LMHead)/dot_general")


def test_time_is_told_apart_and_what_runs_beside_other_work_is_no_gap(tmp_path: Path) -> None:
    device = {"pid": 1, "args": {"name": "/device:GPU:0"}}
    stream = {"pid": 1, "tid": 2, "args": {"name": "Stream #7(Compute)"}}
    events = [
        {"ph": "M", "name": "process_name", **device},
        {"ph": "M", "name": "thread_name", **stream},
        {"ph": "X", "pid": 1, "tid": 2, "name": "nvjet_sm90", "ts": 0, "dur": 4000},
        {"ph": "X", "pid": 1, "tid": 2, "name": "Memset 0", "ts": 1000, "dur": 1000},
        {"ph": "X", "pid": 1, "tid": 2, "name": "loop_add_fusion_3", "ts": 5000, "dur": 3000},
        {"ph": "X", "pid": 9, "tid": 2, "name": "a function on the host", "ts": 0, "dur": 9999},
    ]
    with gzip.open(tmp_path / "host.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)
    found = summary(read_trace(tmp_path, "gpu"), PROGRAM, steps=2)
    assert found["groups"] == pytest.approx(
        {"products": 2.0, "dropout, GELU, residuals, biases": 1.5, "copies": 0.5}
    )
    assert found["ms_of_a_step"] == pytest.approx(4.0)
    assert found["gaps_share"] == pytest.approx(1 / 8)
    assert found["kernels"][1]["op_name"].endswith("feed_forward/add")
