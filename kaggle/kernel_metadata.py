"""What a kernel-metadata.json may say.

Kaggle's client passes misspelt keys and machine names on in silence; this does not.
"""

import dataclasses
import re
import typing

from mtld_core.config import ConfigError, UserError, check, from_dict, nearest, parse_object

FILE = "kernel-metadata.json"
PLACEHOLDER = "INSERT_USERNAME"
# the GPUs that the client's documentation lists; TPUs are left out, for nothing here runs on them
MACHINES = (
    "NvidiaTeslaT4",
    "NvidiaTeslaT4Highmem",
    "NvidiaL4",
    "NvidiaL4X1",
    "NvidiaTeslaA100",
    "NvidiaH100",
    "NvidiaRtxPro6000",
)
SLUG = "[a-z0-9]+(-[a-z0-9]+)*"
OWNED = rf"[A-Za-z0-9_-]+/{SLUG}"
SOURCES = {  # field: what an entry looks like, as a pattern and in words
    "dataset_sources": (rf"{OWNED}(/\d+)?", "owner/dataset-slug"),
    "kernel_sources": (rf"{OWNED}(/\d+)?", "owner/kernel-slug"),
    "competition_sources": (SLUG, "competition-slug"),
    "model_sources": (rf"{OWNED}/\w+/[\w.-]+/\d+", "owner/model-slug/framework/variation/version"),
}


@dataclasses.dataclass(frozen=True)
class KernelMetadata:
    """The fields that Kaggle's client reads.

    Left out are enable_gpu and enable_tpu, which are deprecated, and id_no, which would win over id.
    """

    id: str = ""
    title: str = ""
    code_file: str = ""
    language: typing.Literal["python"] = "python"
    kernel_type: typing.Literal["notebook"] = "notebook"
    is_private: bool = True
    enable_internet: bool = False
    machine_shape: str = ""  # "": no accelerator
    keywords: tuple[str, ...] = ()
    dataset_sources: tuple[str, ...] = ()
    kernel_sources: tuple[str, ...] = ()
    competition_sources: tuple[str, ...] = ()
    model_sources: tuple[str, ...] = ()
    docker_image: str = ""
    docker_image_pinning_type: typing.Literal["original", "latest"] = "latest"

    def __post_init__(self):
        check(
            5 <= len(self.title) <= 50,
            f"title must have 5 to 50 characters, {self.title!r} has {len(self.title)}",
        )
        owner, _, slug = self.id.partition("/")
        check(
            re.fullmatch(OWNED, self.id),
            f"id must be owner/kernel-slug, such as {PLACEHOLDER}/mtld-2-train, not {self.id!r}",
        )
        # Kaggle makes the slug from the title
        made = re.sub("[^a-z0-9]+", "-", self.title.lower()).strip("-")
        check(
            slug == made,
            f"id must be {owner}/{made}, for Kaggle names the kernel by its title {self.title!r}; it is "
            f"{self.id!r}",
        )
        check(
            re.fullmatch(r"[\w-]+\.ipynb", self.code_file),
            f"code_file must be a notebook's plain name, such as 02_train.ipynb, not {self.code_file!r}",
        )
        check(
            self.machine_shape in ("", *MACHINES),
            f"machine_shape {self.machine_shape!r} is no GPU that Kaggle has"
            f"{nearest(self.machine_shape, MACHINES)}",
        )
        for field, (pattern, words) in SOURCES.items():
            for entry in getattr(self, field):
                check(re.fullmatch(pattern, entry), f"{field}: {entry!r} must be {words}")


def read_metadata(path):
    """The fields in a kernel-metadata.json, checked; raises UserError."""
    try:
        values = parse_object(path.read_text(), "the file")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error.strerror if isinstance(error, OSError) else error}") from None
    check_metadata(values, path)
    return values


def check_metadata(values, path):
    """Raise UserError where the dict `values` is not what Kaggle should be told; `path` is to be mended."""
    try:
        for field in ("id", "title", "code_file", "language", "kernel_type", "is_private", "enable_internet"):
            check(field in values, f"{field} is missing; the folders beside kaggle/push.py show how it looks")
        from_dict(KernelMetadata, values)
    except ConfigError as error:
        said = str(error).replace("KernelMetadata has no setting", "there is no field")
        raise UserError(f"{path}: {said.replace('KernelMetadata.', '')}") from None
