"""Context parallelism: one row over many ranks. Knows no model and no trainer."""

from se_model.parallel.exchange import gather_states, receive_left
from se_model.parallel.group import ContextParallelGroup, PendingExchange, Traffic, TrafficCounter
from se_model.parallel.shard import SequenceShard

__all__ = [
    "ContextParallelGroup",
    "PendingExchange",
    "SequenceShard",
    "Traffic",
    "TrafficCounter",
    "gather_states",
    "receive_left",
]
