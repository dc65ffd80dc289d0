"""PostgreSQL behind Redis, on real servers: the whole contract, every interleaving, and a walk through the tree."""

from itertools import product
from pathlib import Path

import pytest
import test_layered
import test_tree_model
from engines import opener
from hypothesis import settings
from scheduler import Scheduler
from support import SOAK
from test_layered import STARTS, Act, Ahead, TickingClock, World, scenario_of, told

from sessiontree.stores.conformance import StoreConformance
from sessiontree.stores.layered import LayeredStore


class Pair:
    """Two empty places on two servers, which any number of processes open."""

    def __init__(self, folder):
        self.primary, self.front = opener("postgres", folder), opener("redis", folder)

    def layers(self, clock, front_clock=None):
        return LayeredStore(self.primary(clock=clock), self.front(clock=front_clock or clock))


class TestPostgresBehindRedis(StoreConformance):
    """``reopen`` is another process, with connections of its own to both."""

    @pytest.fixture(autouse=True)
    def _pair(self, tmp_path):
        self.pair = Pair(tmp_path)
        self.ahead = None

    def make_store(self, clock):
        self.ahead = self.ahead or Ahead(clock)
        return self.pair.layers(clock, self.ahead)

    def reopen(self, store):
        return self.make_store(store.clock)


@pytest.fixture
def on_servers(tmp_path, monkeypatch):
    """Have the interleavings of ``test_layered`` run over real servers, which each schedule finds empty."""
    pair, clock = Pair(tmp_path), TickingClock()
    stores = pair.primary(clock=clock), pair.front(clock=clock)

    class OnServers(World):
        def __post_init__(self):
            self.clock = clock
            self.primary, self.front = stores
            for store in stores:
                for record in store.scan(None, 1000).records:
                    store.revoke(record.handle)

    monkeypatch.setattr(test_layered, "World", OnServers)
    yield
    for store in stores:
        store.close()


@pytest.fixture(scope="module")
def scheduler():
    with Scheduler() as made:
        yield made


ACTS = list(product(["read", "read many"], [0, 1], ["revoke", "apply", "renew"]))


@pytest.mark.usefixtures("on_servers")
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(("read", "by", "change"), ACTS)
def test_every_interleaving_of_a_read_and_a_change_keeps_the_promises(scheduler, start, read, by, change):
    acts = [Act(read, by), Act(change, 0)]
    told(acts, scheduler.explore(scenario_of(acts, start, scheduler)))


class WalkOverLayers(test_tree_model.Walk):
    """The random walk through a tree of sessions; each restart opens both servers anew."""

    def opened(self):
        if self.store:
            self.store.close()
        else:
            self.pair = Pair(Path(self.folder.name))
        return self.pair.layers(self.clock)


class TestLc16TheTreeHoldsInLayers(WalkOverLayers.TestCase):
    settings = settings(test_tree_model.TestLc16TheTreeHoldsInMemory.settings, max_examples=5 * SOAK)
