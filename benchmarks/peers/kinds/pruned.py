"""A physically pruned model: a copy of which the skipped layers are deleted."""

from __future__ import annotations

import copy
from typing import Any

from benchmarks.peers.kinds.hf import HFPeer
from benchmarks.peers.peer import Subject
from depthdial.hf.architectures import decoder_stack


class Pruned(HFPeer):
    name = "pruned"
    what = "a copy with the skipped layers deleted, transformers generate"
    like = None
    scored_as = name

    def made(self, subject: Subject) -> Any:
        kept = subject.route().layers
        model = copy.deepcopy(subject.model)
        layers = decoder_stack(model).layers
        for place in reversed(range(len(layers))):
            if place not in kept:
                del layers[place]
        for place, layer in enumerate(layers):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    module.layer_idx = place
        kinds = getattr(model.config, "layer_types", None)
        if kinds is not None:
            model.config.layer_types = [kinds[place] for place in kept]
        model.config.num_hidden_layers = len(kept)
        return model
