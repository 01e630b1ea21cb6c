"""Logs that can be turned into an event store, one file each."""

from data.sources.avazu import Avazu
from data.sources.completejourney import CompleteJourney
from data.sources.criteo import Criteo
from data.sources.frappe import Frappe
from data.sources.synthetic import Synthetic
from data.sources.table import TableSource
from data.sources.taobao import TaobaoSource
from data.sources.teacher import Teacher
from data.sources.tmall import TmallSource

SOURCES: dict[str, type] = {
    source.name: source
    for source in (
        *(CompleteJourney, TaobaoSource, TmallSource, TableSource, Synthetic),
        *(Criteo, Avazu, Frappe, Teacher),
    )
}
"""Name on the command line -> source."""
