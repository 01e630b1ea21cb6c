"""Logs that can be turned into an event store, one file each."""

from data.sources.completejourney import CompleteJourney
from data.sources.synthetic import Synthetic
from data.sources.table import TableSource
from data.sources.taobao import TaobaoSource
from data.sources.tmall import TmallSource

SOURCES: dict[str, type] = {
    source.name: source
    for source in (CompleteJourney, TaobaoSource, TmallSource, TableSource, Synthetic)
}
"""Name on the command line -> source."""
