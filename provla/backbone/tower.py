"""Transformers models as backbones: the tower a policy needs and nothing else, from the Hub, a folder, or a
configuration.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from provla.backbone.fingerprints import known_fingerprint, vectors_fingerprint, weights_fingerprint
from provla.backbone.later import StandIn, is_standing_in, putting_off
from provla.core.build import first_line
from provla.core.hub import from_pretrained, load_weights
from provla.core.libraries import transformers_library

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DType = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Base:
    """Where frozen weights can be had from again. fingerprint: of all of them, to notice others under the same name."""

    name: str
    revision: str | None
    fingerprint: str


@dataclass
class Source:
    """Which transformers model a tower is.

    architecture: a model class of transformers, the encoder alone (`SiglipVisionModel`, `Qwen2Model`, …). name: a Hub
    id or a folder, with `revision` (a commit); null: `config`, the arguments of the architecture's configuration, with
    random weights. pretrained: false gives a named model random weights too, of the sizes in `config`, without a
    download.
    layer: how many layers run (negative: counted from the end; null: all); what comes out passes the model's final
    norm.
    dtype: of the weights. gradient_checkpointing: recompute activations in the backward pass instead of keeping them.
    files: a folder with configuration and tokenizer or image processor, as a policy folder keeps them together with the
    weights; nothing is fetched then.
    """

    architecture: str
    name: str | None
    revision: str | None
    config: Mapping[str, Any]
    pretrained: bool
    layer: int | None
    dtype: DType
    gradient_checkpointing: bool
    files: str | None
    key: str
    options: dict[str, Any] | None = field(default=None, init=False)  # of a model that may rest

    @property
    def from_scratch(self) -> bool:
        """No weights of this name exist anywhere."""
        return self.name is None

    @property
    def loads(self) -> bool:
        """Weights come from `name`, and not from a policy folder later."""
        return self.pretrained and self.name is not None and self.files is None

    @property
    def commit(self) -> str | None:
        """The revision, which a folder does not have."""
        return None if self.is_folder else self.revision

    @property
    def is_folder(self) -> bool:
        """`name` lies here."""
        return self.name is not None and Path(self.name).expanduser().is_dir()

    def model_class(self) -> Any:
        """`ValueError` for a name that is no model of transformers."""
        transformers = transformers_library()
        found = getattr(transformers, self.architecture, None)
        if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
            raise ValueError(
                f"{self.key}.architecture={self.architecture!r} is no model class of transformers, such as "
                "SiglipVisionModel or Qwen2Model"
            )
        return found

    def model(self, **options: Any) -> Any:
        """As `load`; where weights may come later (`put_off`) and it is known which they are, an `outline`."""
        if self.loads and putting_off():
            assert self.name is not None
            self.options = options
            outline = self.outline(torch.device("meta"))
            if known_fingerprint(outline, self.name, self.commit):
                return outline
        return self.load(**options)

    def outline(self, device: torch.device) -> Any:
        """What `model` would load, as it stands on a device that holds no numbers."""
        cls, config = self.model_class(), self._config(self.options or {})
        config.dtype = DTYPES[self.dtype]  # as loading notes it
        before = torch.get_default_dtype()
        torch.set_default_dtype(config.dtype)
        try:
            with device:
                return self._cut(cls(config, **_no_pooler(cls)))
        finally:
            torch.set_default_dtype(before)

    def _config(self, options: Mapping[str, Any]) -> Any:
        """Of the model that is loaded."""
        assert self.name is not None
        where = f"{self.key}.name"
        config = from_pretrained(self.model_class().config_class, self.name, self.revision, where)
        for option, value in options.items():
            setattr(config, option, value)
        _check_attention(config, where)
        return config

    def load(self, **options: Any) -> Any:
        """The model. options: arguments of its configuration that the caller insists on."""
        cls, where = self.model_class(), f"{self.key}.name"
        if self.loads:
            assert self.name is not None
            config = self._config(options)
            more = {
                "config": config,
                "dtype": DTYPES[self.dtype],
                "output_loading_info": True,
                "adapter_kwargs": {"revision": self.revision},
            }
            model, found = load_weights(cls, self.name, self.revision, where, **more, **_no_pooler(cls))
            _check_complete(found, self.name, cls, where)
        else:
            try:
                config = (
                    from_pretrained(cls.config_class, self.files, None, f"{self.key}.files")
                    if self.files is not None
                    else cls.config_class(**self.config)
                )
                for option, value in options.items():
                    setattr(config, option, value)
                _check_attention(config, f"{self.key}.config")
                with torch.device("meta"):
                    check_room(cls(config, **_no_pooler(cls)), f"{self.key}.config")
                model = cls(config, **_no_pooler(cls)).to(DTYPES[self.dtype])
            except Exception as error:  # transformers and what it is made of raise many kinds
                raise ValueError(
                    f"{self.key}.config cannot be built as a {self.architecture}: {first_line(error)}"
                ) from error
        return self._cut(model)

    def _cut(self, model: Any) -> Any:
        """To the layers that run."""
        if self.layer is not None:
            _truncate(model, self.layer, self.key)
        if self.gradient_checkpointing:
            if not model.supports_gradient_checkpointing:
                raise ValueError(
                    f"{self.key}.gradient_checkpointing=true: {self.architecture} cannot recompute its activations; "
                    "set it to false"
                )
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return model


class Tower(nn.Module):
    """A part's transformers model with what has to be kept beside its weights.

    model: what adapters and quantisation act on. base: where its frozen weights can be had from again; None where
    nowhere.
    vectors: their fingerprint as earlier versions took it.
    """

    def __init__(self, source: Source, model: Any, processor: Any) -> None:
        super().__init__()
        self.model = model
        self._processor = processor
        self._source, self._device = source, torch.device("cpu")
        self._stand_in: StandIn | None = None
        self.pretrained = not source.from_scratch
        self.base, self._vectors = None, ""
        if source.loads and source.name:
            self.base = Base(source.name, source.commit, weights_fingerprint(model, source.name, source.commit))
            self._vectors = "" if self.resting else vectors_fingerprint(model)

    @property
    def vectors(self) -> str:
        if self.base is not None and not self._vectors:
            self.wake()
            self._vectors = vectors_fingerprint(self.model)
        return self._vectors

    @property
    def resting(self) -> bool:
        """Its weights are not here; who asks `ready` gets them."""
        first = next(self.model.parameters(), None)
        return first is not None and first.is_meta

    @property
    def device(self) -> torch.device:
        """Where the model is, or will be."""
        first = next(self.model.parameters(), None)
        return self._device if first is None or first.is_meta else first.device

    def ready(self) -> Any:
        """The model, with its weights; inside `standing_in` what stands for it."""
        if not (self.resting and is_standing_in()):
            self.wake()
            return self.model
        if self._stand_in is None:
            self._stand_in = StandIn(self._source.outline, self._device)
        return self._stand_in

    def stay(self) -> None:
        """Wakes it for good: somebody is about to do with its weights what nobody here knows."""
        self.wake()
        self._source.options = None

    def wake(self) -> None:
        """Loads the weights of a tower that rests. `ValueError` where they are other ones by now."""
        source, self._stand_in = self._source, None
        if not self.resting:
            return
        assert self.base is not None
        # Whoever asks may be sampling: draws and gradients are as if the weights had been here all the time.
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            model = source.load(**source.options or {}).requires_grad_(False).eval()
        if weights_fingerprint(model, self.base.name, self.base.revision) != self.base.fingerprint:
            raise ValueError(f"{source.key}.name={source.name!r}: its weights have changed since this run began")
        self.model = model.to(self._device)

    def rest(self) -> None:
        """Lets the weights go until somebody asks, where `put_off` has said that nothing changes them."""
        if self._source.options is not None and not self.resting:
            self.model = self._source.outline(torch.device("meta")).requires_grad_(False).eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What moves a module. A model that rests stays where it is, and comes to the right device when it wakes."""
        self._device = fn(torch.empty(0, device=self._device)).device
        model = self.model
        if self.resting:
            self._modules["model"] = None
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        finally:
            self._modules["model"] = model
        return self

    @property
    def adaptable(self) -> nn.Module:
        """What adapters and quantisation act on."""
        model: nn.Module = self.model
        return model

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if not any(p.requires_grad for p in self.model.parameters()):
            self.model.eval()  # no dropout in features that nobody trains
        return self

    def from_base(self) -> set[str]:
        """Names in the model's state that its base holds: those of frozen weights, where any weight is frozen."""
        if self.base is None:
            return set()
        trainable = {name for name, p in self.model.named_parameters() if p.requires_grad}
        if all(name in trainable for name, _ in self.model.named_parameters()):
            return set()
        return {name for name in self.model.state_dict() if name not in trainable}

    def save_files(self, folder: Path) -> None:
        """Configuration, and tokenizer or image processor, for `Source.files`."""
        self.model.config.save_pretrained(folder)
        self._processor.save_pretrained(folder)


def check_room(module: nn.Module, key: str) -> None:
    """`ValueError` where a module, as it stands on the meta device, could not be trained in this machine's memory: its
    weights take four times their size.
    """
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * size > memory:
        raise ValueError(
            f"{key}: weights of {size / 1e9:.1f} GB, and as much again for gradients and each of AdamW's two, do not "
            f"fit into {memory / 1e9:.0f} GB"
        )


def towers(module: nn.Module) -> Iterator[tuple[str, Tower]]:
    """The towers of a policy with their paths, which are those of their configuration nodes too."""
    return ((name, m) for name, m in module.named_modules() if isinstance(m, Tower))


def blocks(model: nn.Module) -> nn.ModuleList | None:
    """The model's stack of layers; None where it has none."""
    count = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    stacks = (m for m in model.modules() if isinstance(m, nn.ModuleList))
    return next((stack for stack in stacks if count and len(stack) == count), None)


def _truncate(model: nn.Module, layer: int, key: str) -> None:
    stack = blocks(model)
    if stack is None:
        raise ValueError(f"{key}.layer={layer}: {type(model).__name__} is no stack of equal layers; set it to null")
    count = len(stack)
    keep = layer if layer >= 0 else count + 1 + layer
    if not 1 <= keep <= count:
        raise ValueError(
            f"{key}.layer={layer}: the model has {count} layers; valid: 1 to {count}, or -1 (all) to -{count}"
        )
    del stack[keep:]


def _check_attention(config: Any, where: str) -> None:
    """`ValueError` for a configuration that names an attention kernel on the Hub, which would be fetched and run."""
    if "/" in str(asked := config._attn_implementation):
        raise ValueError(
            f"{where}: its configuration asks for the attention kernel {asked!r}, which is code from the Hub; provla "
            "runs none of that"
        )


def _no_pooler(cls: Any) -> dict[str, Any]:
    """BERT's pooler is trained for next-sentence prediction, and nothing here reads it."""
    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(cls.__init__).parameters else {}


def _check_complete(found: Mapping[str, Any], name: str, cls: Any, where: str) -> None:
    """transformers only warns when a checkpoint is of another family, and leaves the weights random."""
    wrong = sorted(found["missing_keys"]) + [str(key) for key in found["mismatched_keys"]]
    if wrong:
        raise ValueError(
            f"{where}={name!r} is no {cls.__name__}: {len(wrong)} of its weights are missing or of another size, such "
            f"as {wrong[0]}"
        )
