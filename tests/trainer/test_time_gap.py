"""The field gap from an experiment's switch to the model's tables."""

from data.collate import GAP_BUCKETS
from trainer.experiment import Experiment, FieldWidths


def test_the_gap_is_a_temporal_field_only_where_it_is_asked_for() -> None:
    vocabularies = [("item", 7), ("action", 3)]
    without = FieldWidths().fields(vocabularies, 9)
    assert [field.name for field in without] == ["item", "action", "recency"]
    *rest, gap = FieldWidths().fields(vocabularies, 9, time_gap=True)
    assert tuple(rest) == without
    assert (gap.name, gap.num_embeddings, gap.semantic) == ("gap", GAP_BUCKETS, False)
    assert not Experiment().time_gap
