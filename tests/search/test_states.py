from __future__ import annotations

import torch

from depthdial.engine.session import Session
from depthdial.search.states import text_states


def test_states_are_those_of_each_text_alone_without_padding(model, tokenizer):
    session = Session.of(model, tokenizer)
    texts = [[4, 5, 6, 7], [8, 9]]
    units = text_states(session, texts)
    assert units.shape == (7, 6, 32)
    inner = []
    hook = model.model.layers[-1].register_forward_hook(lambda _, __, output: inner.append(output))
    done = 0
    for text in texts:
        with torch.no_grad():
            states = model(input_ids=torch.tensor([text]), output_hidden_states=True).hidden_states
        last = inner[-1][0] if isinstance(inner[-1], tuple) else inner[-1]
        want = torch.stack([*(state[0] for state in states[:-1]), last.reshape(len(text), -1)])
        torch.testing.assert_close(
            units[:, done : done + len(text)], torch.nn.functional.normalize(want, dim=-1), atol=1e-5, rtol=1e-4
        )
        done += len(text)
    hook.remove()
