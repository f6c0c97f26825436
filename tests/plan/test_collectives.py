"""The collectives of a compiled program, read from its text."""

from jaxgpt.plan.collectives import collectives


def test_collectives_in_loops_count_as_often_as_they_run():
    text = """HloModule m
%body (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %ag = f32[8]{0} all-gather(%p), replica_groups=[2,4]<=[8], dimensions={0}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %w = f32[8]{0} while(%a), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %ar = (f32[8]{0}, bf16[2,3]{1,0}) all-reduce(%w, %w), replica_groups={{0,1},{2,3}}, to_apply=%add
}
"""
    first, second = collectives(text)
    assert (str(first), first.times, first.bytes) == ("all-gather of 4: f32[8]", 5, 5 * 32 * 3 / 4)
    assert (str(second), second.bytes) == ("all-reduce of 2: f32[8] bf16[2,3]", 32 + 12)
