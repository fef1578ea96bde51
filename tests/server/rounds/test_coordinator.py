"""Which process coordinates, and what it does when a lease is lost."""

from __future__ import annotations

import numpy as np

from pfl_server.rounds.coordinator import LEASE_S, Coordinator
from pfl_server.storage.models import Federation, Round
from tests.server.testbed import ONE, federation_config, small


def test_a_federation_goes_on_after_it_was_opened_again(tmp_path):
    with small(tmp_path, federation_config(rounds=ONE, strategy={"name": "fedadam"}), devices=1) as f:
        f.send(f.devices[0], 1.0)
        f.step()
        device, kept, clock = f.devices[0], f.model(), f.clock
    clock.pass_time(60)
    with small(tmp_path, clock=clock) as f:
        assert f.model().sets.keys() == {"global.m", "global.v"}
        np.testing.assert_array_equal(f.model().values["a"], kept.values["a"])
        f.send(device, 1.0)
        f.step()
        assert f.version().number == 2


def test_one_process_at_a_time_coordinates_and_another_takes_over(tmp_path):
    with small(tmp_path, federation_config(rounds=ONE), devices=1) as f:
        other = Coordinator(f.services)
        f.send(f.devices[0])
        other.step()
        assert f.round(0).state == "open"
        f.clock.pass_time(LEASE_S + 1)
        other.step()
        assert f.round(0).state == "merged"
        f.send(f.devices[0])
        f.step()
        assert f.round(1).state == "open"
        other.stop(1)
        with f.services.database.read() as session:
            assert session.get_one(Federation, 1).lease_owner is not None


def test_a_merge_whose_lease_another_process_took_publishes_nothing(tmp_path):
    with small(tmp_path, federation_config(rounds=ONE), devices=1) as f:
        f.send(f.devices[0])

        def steal(point):
            if point == "values stored":
                with f.services.database.write() as session:
                    session.get_one(Round, 0).lease_owner = "another"

        slow = Coordinator(f.services, checkpoint=steal)
        f.clock.pass_time(LEASE_S + 1)
        slow.step()
        assert (f.round(0).state, f.version().number) == ("merging", 0)
        f.clock.pass_time(LEASE_S + 1)
        f.step()
        assert (f.round(0).state, f.version().number) == ("merged", 1)
