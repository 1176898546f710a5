# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest
import torch

from monai_segshap.networks import load_weights


@pytest.fixture
def saved(tmp_path):
    network = torch.nn.Conv3d(1, 2, 3)
    path = tmp_path / "weights.pt"
    torch.save(network.state_dict(), path)
    return network, path


@pytest.mark.parametrize("key", [None, "model", "state_dict", "network_weights"])
def test_weights_are_loaded_from_plain_and_nested_checkpoints(saved, tmp_path, key):
    source, path = saved
    if key:
        path = tmp_path / "nested.pt"
        torch.save({key: source.state_dict(), "epoch": 3}, path)
    network = load_weights(torch.nn.Conv3d(1, 2, 3).train(), path)
    assert torch.equal(network.weight, source.weight)
    assert not network.training


def test_another_network_is_named_with_its_shapes(saved):
    with pytest.raises(ValueError, match=r"weight: \(2, 1, 3, 3, 3\) in the file, \(4, 1, 3, 3, 3\) in the network"):
        load_weights(torch.nn.Conv3d(1, 4, 3), saved[1])


def test_missing_keys_are_counted(saved):
    with pytest.raises(ValueError, match=r"missing \['0.bias', '0.weight'\] \(2\)"):
        load_weights(torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3)), saved[1])


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match="cannot read network weights"):
        load_weights(torch.nn.Conv3d(1, 2, 3), tmp_path / "nowhere.pt")


def test_broken_file(tmp_path):
    path = tmp_path / "broken.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="cannot read network weights"):
        load_weights(torch.nn.Conv3d(1, 2, 3), path)


class _Code:
    def __reduce__(self):
        return (print, ("code of the file ran",))


def test_code_in_a_checkpoint_does_not_run(tmp_path, capsys):
    path = tmp_path / "evil.pt"
    torch.save({"model": _Code()}, path)
    with pytest.raises(ValueError, match="cannot read network weights"):
        load_weights(torch.nn.Conv3d(1, 2, 3), path)
    assert "code of the file ran" not in capsys.readouterr().out


def test_a_file_without_tensors(tmp_path):
    path = tmp_path / "numbers.pt"
    torch.save({"a": 1}, path)
    with pytest.raises(ValueError, match="holds no state dictionary"):
        load_weights(torch.nn.Conv3d(1, 2, 3), path)
