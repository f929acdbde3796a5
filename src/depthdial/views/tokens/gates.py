"""Gates: small trained networks, one a controlled layer, that decide token by token whether the layer runs.

After arXiv 2410.20022, section 3: each gate maps its input to two logits (skip, run). The paper compares the hidden state
before the layer with a *fixed* input, for which a gate can learn no more than one rate; positions, embeddings and their sum
are those of its released code. Inputs are detached and scaled to unit RMS, without learned parameters: the norm of a hidden
state grows a thousandfold with depth, and a gate should see directions and not the layer's number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional

from depthdial.checks import choice, number, whole
from depthdial.errors import InputError, one_line
from depthdial.files import Document, write_atomically
from depthdial.hf.trained import recorded_prompts
from depthdial.views.tokens.policy import Decide, TokenPolicy, TokenStep, logistic_noise, uniform_draws

GateInput = Literal["hidden", "fixed", "position", "embedding", "embedding+position"]
GATE_INPUTS: tuple[GateInput, ...] = get_args(GateInput)
GateKind = Literal["linear", "mlp"]
GATE_KINDS: tuple[GateKind, ...] = get_args(GateKind)
GateMode = Literal["sampled", "argmax"]
GATE_MODES: tuple[GateMode, ...] = get_args(GateMode)

GATES_FILE, GATE_WEIGHTS_FILE = "gates.json", "gates.safetensors"
_FILE = Document("depthdial-gates", 1, "gates", "make some with `depthdial train-gates`")
_SLOWEST = 10_000.0  # wavelength base of the position features, as in Vaswani et al., arXiv 1706.03762


@dataclass(frozen=True)
class GateConfig:
    """What gates look like.

    Attributes:
        n_layers: L of the model.
        width: of its hidden states.
        input: what a gate looks at, one of GATE_INPUTS.
        kind: `linear` (width -> 2) or `mlp` (width -> hidden_width -> 2, GELU between).
        hidden_width: of an `mlp`.
        controlled: layers that have a gate, in order; all others always run. None: all but the first and the last.
        run_bias: log-odds of running at the start.
        seed: of the first weights and of the fixed input.

    Raises:
        InputError: for a value that cannot be, or no layer to control.

    Example:
        >>> dd.GateConfig(n_layers=6, width=32).layers
        (1, 2, 3, 4)
    """

    n_layers: int
    width: int
    input: GateInput = "hidden"
    kind: GateKind = "linear"
    hidden_width: int = 64
    controlled: tuple[int, ...] | None = None
    run_bias: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_layers", "width", "hidden_width"):
            whole(name, getattr(self, name), 1)
        choice("input of gates", self.input, GATE_INPUTS)
        choice("kind of gates", self.kind, GATE_KINDS)
        whole("seed", self.seed)
        number("run_bias", self.run_bias, -1e4, 1e4)
        object.__setattr__(self, "controlled", _controlled(self.controlled, self.n_layers))

    @property
    def layers(self) -> tuple[int, ...]:
        """The controlled layers."""
        return self.controlled or ()

    @property
    def lowest_fraction(self) -> float:
        """The fraction of all layers that runs when every gate skips."""
        return 1 - len(self.layers) / self.n_layers


@dataclass(frozen=True)
class GateBase:
    """The weights that gates decide for, as `ModelIdentity` has them; without an adapter that comes with the gates."""

    name: str
    weights_hash: str
    dtype: str


class TokenGates(nn.Module):
    """One gate a controlled layer, in float32 whatever the model is held in.

    Args:
        config: what they look like.
        base: the weights that they were trained for, where known.
        about: JSON-ready, goes into `gates.json`: how they were trained.

    Example:
        >>> gates = dd.TokenGates(dd.GateConfig(n_layers=6, width=32))
        >>> view = dd.token_view(model, gates.policy("sampled"))
    """

    def __init__(self, config: GateConfig, base: GateBase | None = None, about: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.config, self.base, self.about = config, base, dict(about or {})
        draw = torch.Generator().manual_seed(config.seed % 2**63)
        fixed = torch.randn(config.width, generator=draw)  # drawn first: the same for a linear gate and an MLP
        self.register_buffer("fixed", unit_rms(fixed), persistent=False)
        self.gates = nn.ModuleDict({str(layer): _Gate(config, draw) for layer in config.layers})

    def logits(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """The two logits (skip, run) of a controlled layer, (.., 2) in float32, for `x` (.., width): see `inputs`."""
        return self.gates[str(layer)](x)

    def log_odds(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """Log-odds (..) that a controlled layer runs."""
        logits = self.logits(layer, x)
        return logits[..., 1] - logits[..., 0]

    def inputs(self, step: TokenStep) -> Callable[[torch.Tensor], torch.Tensor]:
        """What gates see of one forward pass.

        Returns:
            A layer's input (n_sequences, n_tokens, width) -> what its gate looks at, detached, float32 and of unit RMS.
        """
        kind, width = self.config.input, self.config.width
        if kind == "hidden":
            return lambda hidden: unit_rms(hidden.detach())
        if kind == "fixed":
            constant = self.get_buffer("fixed").expand(*step.positions.shape, width)
        elif kind == "position":
            constant = position_features(step.positions, width)
        else:
            constant = unit_rms(step.embeddings().detach())
            if constant.shape[-1] != width:
                raise InputError(
                    f"The model's embeddings are {constant.shape[-1]} wide and its hidden states {width}, so that gates "
                    "cannot look at embeddings: use the input hidden, fixed or position."
                )
            if kind == "embedding+position":
                constant = unit_rms(constant + position_features(step.positions, width).to(constant.device))
        return lambda hidden: constant

    def policy(self, mode: GateMode, seed: int = 0) -> GatePolicy:
        """The gates at work: `sampled`, the paper's way, draws at the gates' odds; `argmax` runs what is likelier to run."""
        return GatePolicy(self, mode, seed)

    def check_fit(self, n_layers: int, width: int) -> None:
        """InputError unless the gates are for a model of this depth and width."""
        if (n_layers, width) != (self.config.n_layers, self.config.width):
            raise InputError(
                f"The gates are for a model of {self.config.n_layers} layers of width {self.config.width}"
                f"{'' if self.base is None else f' ({self.base.name})'}, and this one has {n_layers} of width {width}: "
                "use the model that they were trained on."
            )

    def save_pretrained(self, folder: Path | str) -> Path:
        """Write `gates.safetensors`, then `gates.json`: a folder with the latter is whole.

        Raises:
            InputError: if the folder cannot be written.
        """
        folder = Path(folder)
        self.save_weights(folder)
        base = self.base and asdict(self.base)
        _FILE.write(folder / GATES_FILE, {"config": asdict(self.config), "base": base, "about": self.about})
        return folder

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> TokenGates:
        """Read what `save_pretrained` wrote; whether it fits a model is asked by `check_fit`, or by `load_gates`.

        Raises:
            InputError: if the folder holds no gates, or damaged ones.
        """
        folder = Path(folder).expanduser()
        path = folder / GATES_FILE
        if not path.is_file():
            raise InputError(f"{folder} holds no gates: give a folder that `depthdial train-gates` made.")

        def build(document: Mapping[str, Any]) -> TokenGates:
            base = document.get("base")
            return cls(GateConfig(**document["config"]), GateBase(**base) if base else None, document.get("about"))

        gates = _FILE.read(path, build)
        gates.load_weights(folder)
        return gates

    def load_weights(self, folder: Path) -> None:
        """Put the weights of a folder into these gates; InputError if the file is missing or damaged, or holds others."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = folder / GATE_WEIGHTS_FILE
        try:
            self.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = one_line(error).rstrip(".")
            raise InputError(
                f"{path} does not hold the gates of {GATES_FILE} ({reason}): copy or train them again."
            ) from error

    def save_weights(self, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write `gates.safetensors`; of `state_dict` where the gates' own tensors are in shards."""
        from safetensors.torch import save_file

        held = self.state_dict() if state_dict is None else state_dict
        tensors = {name: tensor.contiguous().cpu() for name, tensor in held.items()}
        write_atomically(folder / GATE_WEIGHTS_FILE, lambda path: save_file(tensors, path))


@dataclass(frozen=True, eq=False)
class GatePolicy(TokenPolicy):
    """Trained gates as a policy.

    Attributes:
        mode: `sampled` or `argmax`; with a fixed input these are one rate a layer, and a static route.
        seed: of the draws.
    """

    gates: TokenGates
    mode: GateMode = "sampled"
    seed: int = 0
    name: str = field(default="")

    def __post_init__(self) -> None:
        choice("mode of gates", self.mode, GATE_MODES)
        if not self.name:
            object.__setattr__(self, "name", f"gates:{self.gates.config.input}:{self.mode}")

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.gates.config).encode())
        for name, tensor in sorted(self.gates.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return f"{self.mode} {self.seed} {digest.hexdigest()}"

    @property
    def trained_on(self) -> frozenset[str]:
        return recorded_prompts(self.gates.about)

    def start(self, step: TokenStep) -> Decide:
        see, controlled = self.gates.inputs(step), frozenset(self.gates.config.layers)
        noise = None
        if self.mode == "sampled":
            noise = logistic_noise(uniform_draws(self.seed, step.keys, step.positions, step.n_layers))

        @torch.no_grad()
        def decide(layer: int, hidden: torch.Tensor) -> torch.Tensor | None:
            if layer not in controlled:
                return None
            odds = self.gates.log_odds(layer, see(hidden)).to(hidden.device)
            return odds > 0 if noise is None else odds + noise[layer].to(hidden.device) > 0

        return decide

    def check(self, n_layers: int, width: int) -> None:
        self.gates.check_fit(n_layers, width)

    def flops_per_token(self, width: int, vocabulary: int, layers_run: float) -> float:
        config = self.gates.config
        gate = 2.0 * width * 2 if config.kind == "linear" else 2.0 * config.hidden_width * (width + 2)
        scaling = 3.0 * width if config.input == "hidden" else 0.0  # the other inputs are scaled once, not at every layer
        return len(config.layers) * (gate + scaling)


class _Gate(nn.Module):
    """A gate: takes the mean over its inputs and not the sum.

    A step of Adam moves every weight by the learning rate, and so a sum by as much as the width: with the mean, a rate is
    what one step may add to log-odds, for models of any width. Gradients are small for the same reason, so that clipping by
    the norm of all of them leaves the backbone's share.
    """

    def __init__(self, config: GateConfig, draw: torch.Generator) -> None:
        super().__init__()
        sizes = [config.width, *([config.hidden_width] if config.kind == "mlp" else []), 2]
        # Unit variance into an MLP's GELU; at the output close to nothing beside the bias.
        spreads = [n**0.5 for n in sizes[:-2]] + [1.0]
        shapes = zip(sizes[1:], sizes[:-1], strict=True)
        drawn = [torch.randn(*shape, generator=draw) * spread for shape, spread in zip(shapes, spreads, strict=True)]
        self.weights = nn.ParameterList(drawn)
        self.biases = nn.ParameterList([torch.zeros(n) for n in sizes[1:-1]] + [torch.tensor([-0.5, 0.5]) * config.run_bias])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                x = x if i == 0 else functional.gelu(x)
                # With layers on several devices a gate goes to where its input is.
                x = functional.linear(x, weight.to(x.device) / weight.shape[1], bias.to(x.device))
        return x


def unit_rms(x: torch.Tensor) -> torch.Tensor:
    """(.., width) scaled to a mean square of 1 over the width, in float32; zeros stay zeros."""
    x = x.float()
    return x * (x.square().mean(-1, keepdim=True) + 1e-12).rsqrt()


def position_features(positions: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines of positions, (..) -> (.., width) of unit RMS: any architecture's, also one without embeddings of
    positions.
    """
    n_waves = (width + 1) // 2
    places = torch.arange(n_waves, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() * _SLOWEST ** (-places / n_waves)
    return unit_rms(torch.cat([angles.sin(), angles.cos()], dim=-1)[..., :width])


def _controlled(layers: Any, n_layers: int) -> tuple[int, ...]:
    chosen = tuple(range(1, n_layers - 1) if layers is None else layers)
    for layer in chosen:
        whole("controlled layer", layer, 0, n_layers - 1)
    if not chosen:
        why = f", for a model of {n_layers} layers has none between the first and the last" if layers is None else ""
        raise InputError(f"No layer is controlled{why}: name at least one.")
    if len(set(chosen)) != len(chosen):
        raise InputError(f"A layer is named twice among the controlled ones {list(chosen)}: name each once.")
    return tuple(sorted(chosen))
