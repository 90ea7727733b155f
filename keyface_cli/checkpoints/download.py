"""The published files, fetched from their repositories and made into the model `keyface`.

What is fetched stays under another name until its size and hash are right, and a fetch that was
cut or killed resumes where it stopped. Nothing is fetched twice; nothing is run.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyface_cli.checkpoints.installed import home
from keyface_cli.errors import WeightsError
from keyface_cli.files import file_hash, is_full, take_name

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

Report = Callable[[str], None]

PUBLISHED = "toninio19/keyface"
TIMEOUT_S = 4.0  # for the first answer of the server
SPARE_BYTES = 2**30  # left free on the disk
BLOCK_BYTES = 2**25  # of one request; what a killed fetch loses at most


@dataclass(frozen=True)
class Role:
    """A file that the model is made of, and how to know it in its repository.

    Args:
        name: the field of `conversion.Sources`, or "field/file" for one file of a folder.
        repository: owner and name.
        expected: its path as the specification has it.
        pattern: what its path has to look like where that path is absent.
        licence: its origin's, where the repository is not its origin; with where to read it.
    """

    name: str
    repository: str
    expected: str
    pattern: str
    licence: tuple[str, str] | None = None


_MICROSOFT = ("MIT", "https://github.com/microsoft/unilm/blob/master/LICENSE")
_WAV2VEC2 = "facebook/wav2vec2-base-960h"
_DIFFUSION = "stabilityai/stable-video-diffusion-img2vid"
_OPEN_VAE = "stabilityai/sd-vae-ft-mse"
_UNET = r"[^/]*\.(pt|ckpt|safetensors)"  # how the names of the UNets' files end
_VAE = r"diffusion_pytorch_model[^/]*\.(safetensors|bin)"
ROLES = (
    Role("keyframe", PUBLISHED, "checkpoints/keyframe.pt", rf"keyframes?{_UNET}"),
    Role(
        "interpolation",
        PUBLISHED,
        "checkpoints/interpolation.pt",
        rf"interpolation(?!_?bad){_UNET}",
    ),
    Role("guide", PUBLISHED, "checkpoints/interpolation_bad.pt", rf"(interpolation_?)?bad{_UNET}"),
    Role("wavlm", PUBLISHED, "checkpoints/WavLM-Base+.pt", r"wavlm[^/]*\.(pt|ckpt)", _MICROSOFT),
    Role("beats", PUBLISHED, "checkpoints/BEATs.pt", r"beats[^/]*\.(pt|ckpt)", _MICROSOFT),
    Role("wav2vec2/config.json", _WAV2VEC2, "config.json", r"config\.json"),
    Role(
        "wav2vec2/weights",
        _WAV2VEC2,
        "model.safetensors",
        r"(model\.safetensors|pytorch_model\.bin)",
    ),
    Role("vae/config.json", _DIFFUSION, "vae/config.json", r"vae/config\.json"),
    Role("vae/weights", _DIFFUSION, "vae/diffusion_pytorch_model.fp16.safetensors", rf"vae/{_VAE}"),
)
# Where Stable Video Diffusion's repository refuses: a VAE with the same encoder, that everybody may
# fetch. Both families froze the first Stable Diffusion's encoder and trained decoders anew.
OPEN_ENCODER = (
    Role("vae/config.json", _OPEN_VAE, "config.json", r"config\.json"),
    Role("vae/weights", _OPEN_VAE, "diffusion_pytorch_model.safetensors", _VAE),
)


class _Refused(WeightsError):
    """A repository that is there, but not for everyone."""


@dataclass(frozen=True)
class Found:
    """A file in a repository, at a fixed revision."""

    role: Role
    path: str
    revision: str
    size: int
    sha256: str | None  # of large files; the repository does not say that of small ones
    licence: str
    licence_url: str


def find(
    revision: str | None = None,
    roles: tuple[Role, ...] = ROLES,
    report: Report = lambda line: None,
) -> list[Found]:
    """List the repositories and match their files to roles.

    Where the repository of the portrait's encoder asks for a login that is not there, the encoder
    is that of `OPEN_ENCODER`.

    Args:
        revision: branch, tag or commit of the model's own repository; None is its newest.
        roles: what to look for.
        report: told in a line where another encoder is taken.

    Raises:
        WeightsError: no connection, a repository is absent, gated or has no file for a role.
    """
    found: list[Found] = []
    for repository in dict.fromkeys(role.repository for role in roles):
        wanted = [role for role in roles if role.repository == repository]
        try:
            info = _list(repository, revision if repository == PUBLISHED else None)
            matched = [_match(role, info) for role in wanted]
            if repository == _DIFFUSION:  # its list is for everyone, its files are not
                _ask(matched[-1])
        except _Refused:
            if repository != _DIFFUSION:
                raise
            report(
                f"{repository} asks for a login, so the encoder of portraits is taken from "
                f"{_OPEN_VAE}; its latents are the same, keyface weights verify shows it"
            )
            info = _list(_OPEN_VAE)
            matched = [_match(role, info) for role in OPEN_ENCODER]
        found += matched
    return found


def space(found: list[Found], folder: Path) -> tuple[int, int]:
    """Return the bytes that a fetch into a folder takes, and those that are free there.

    Beside what is fetched the model is written, which is about as large.
    """
    missing = [file for file in found if not _is_there(_place(folder, file), file)]
    needed = sum(file.size for file in missing) + sum(file.size for file in found) + SPARE_BYTES
    place = folder
    while not place.exists():
        place = place.parent
    return needed, shutil.disk_usage(place).free


def fetch(found: list[Found], folder: Path, report: Report = lambda line: None) -> dict[str, Path]:
    """Fetch files into a folder; those that are there and right are left alone.

    Args:
        found: as from `find`.
        folder: made where it is missing.
        report: told in a line what is fetched.

    Returns:
        For each role's name the file.

    Raises:
        WeightsError: no connection, no space, or a file that is not the one listed.
    """
    paths = {file.role.name: _place(folder, file) for file in found}
    missing = [file for file in found if not _is_there(paths[file.role.name], file)]
    needed, free = space(found, folder)
    if free < needed:
        raise WeightsError(
            f"not enough space in {folder}: {free / 1e9:.1f} GB are free, "
            f"{needed / 1e9:.1f} GB are needed for the files and the model",
            "free some, or set KEYFACE_HOME to a folder on another disk",
        )
    for file in missing:
        report(f"fetching {file.path} of {file.role.repository}, {file.size / 1e6:,.0f} MB")
        _fetch(file, paths[file.role.name])
    return paths


def origins(found: list[Found]) -> list[dict[str, Any]]:
    """Return what is known about each file, for a model's manifest."""
    return [
        {
            "role": file.role.name,
            "repository": file.role.repository,
            "file": file.path,
            "revision": file.revision,
            "bytes": file.size,
            "sha256": file.sha256,
            "licence": file.licence,
            "licence_url": file.licence_url,
        }
        for file in found
    ]


def downloads_folder() -> Path:
    """Return the folder that files are fetched into."""
    return home() / "downloads"


def pull(revision: str | None, *, force: bool, report: Report) -> Path:
    """Fetch and convert the published model into the folder of installed models.

    Args:
        revision: of the model's own repository; None is its newest.
        force: make the model again where it is installed.
        report: told in a line what happens.

    Returns:
        The model's folder.

    Raises:
        WeightsError: see `find`, `fetch` and `conversion.convert`.
    """
    target, downloads = home() / "models" / "keyface", downloads_folder()
    if target.exists() and not force:
        raise WeightsError(f"installed already: {target}", "use --force to fetch it again")
    found = find(revision, report=report)
    for file in found:
        report(
            f"{file.role.name}: {file.role.repository}/{file.path}, licence {file.licence}, "
            f"see {file.licence_url}"
        )
    paths = fetch(found, downloads, report)

    from keyface_cli.checkpoints.convert import Sources, convert

    sources = Sources(
        paths["keyframe"],
        paths["interpolation"],
        paths["wavlm"],
        paths["beats"],
        paths["wav2vec2/weights"].parent,
        paths["guide"],
        paths["vae/weights"].parent,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    licence = "; ".join(sorted({f"{file.role.repository}: {file.licence}" for file in found}))
    convert(sources, target, force=force, licence=licence, origins=origins(found), report=report)
    shutil.rmtree(downloads, ignore_errors=True)
    return target


def _list(repository: str, revision: str | None = None) -> ModelInfo:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=_endpoint())
    with _network(repository, revision):
        return api.model_info(repository, revision=revision, files_metadata=True, timeout=TIMEOUT_S)


def _match(role: Role, info: ModelInfo) -> Found:
    """Choose the file of a role: the expected path, else the only one that looks like it."""
    page = f"{_endpoint()}/{role.repository}"
    files = {file.rfilename: file for file in info.siblings or []}
    pattern = re.compile(rf"(.*/)?{role.pattern}", re.IGNORECASE)
    candidates = [path for path in files if pattern.fullmatch(path)]
    if role.expected in files:
        path = role.expected
    elif candidates:
        # several builds of one network: any will do, and the shortest name is the plainest
        path = min(candidates, key=lambda name: (len(name), name))
    else:
        raise WeightsError(
            f"{page}: no file for {role.name}",
            f"it holds {', '.join(sorted(files)) or 'nothing'}; "
            "fetch the files yourself and use keyface weights convert",
        )
    stated = info.card_data.get("license") if info.card_data else None
    licence, url = role.licence or (str(stated or "not stated there"), page)
    large = files[path].lfs
    sha256 = large.sha256 if large else None
    return Found(role, path, info.sha or "main", files[path].size or 0, sha256, licence, url)


def _place(folder: Path, file: Found) -> Path:
    # the revision is in the path, so that another one does not continue this one's bytes
    return folder / file.role.repository.replace("/", "--") / file.revision[:12] / file.path


def _is_there(path: Path, file: Found) -> bool:
    return path.is_file() and path.stat().st_size == file.size


def _ask(file: Found) -> None:
    """Raise what fetching a file would raise, without fetching it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(file.role.repository, file.path, revision=file.revision, endpoint=_endpoint())
    with _network(file.role.repository, file.revision, file.path):
        get_hf_file_metadata(url, timeout=TIMEOUT_S, endpoint=_endpoint())


def _fetch(file: Found, path: Path) -> None:
    """Fetch one file, from where an earlier run left it.

    Not by `hf_hub_download(local_dir=...)`: as of huggingface_hub 2.4 it writes to a name that is
    new each time and removes it on failure, so a killed fetch of 10 GB would begin anew.
    """
    from huggingface_hub import HfFileSystem
    from rich.console import Console
    from rich.progress import wrap_file

    partial = path.with_name(f"{path.name}.partial")
    source = f"{file.role.repository}@{file.revision}/{file.path}"
    console = Console(stderr=True)
    with _network(file.role.repository, file.revision, file.path):
        path.parent.mkdir(parents=True, exist_ok=True)
        hub = HfFileSystem(endpoint=_endpoint())
        with (
            partial.open("ab") as out,
            hub.open(source, block_size=BLOCK_BYTES, cache_type="none") as remote,
            wrap_file(
                remote,
                file.size - out.tell(),
                description=path.name,
                console=console,
                disable=not console.is_terminal,
            ) as reader,
        ):
            remote.seek(out.tell())
            shutil.copyfileobj(reader, out, BLOCK_BYTES)
        if not _is_there(partial, file) or file.sha256 not in (None, file_hash(partial)):
            partial.unlink()
            raise WeightsError(
                f"{file.path} of {file.role.repository} is not the file that is listed there",
                "its size or sha256 differs and it was dropped; run the command again",
            )
        take_name(partial, path)


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


@contextmanager
def _network(repository: str, revision: str | None = None, path: str = "") -> Iterator[None]:
    """Turn what can go wrong between here and the hub into one line each."""
    from huggingface_hub import errors

    what = f"{repository}/{path}" if path else repository
    page = f"{_endpoint()}/{repository}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise _Refused(
            f"{what}: its owner asks you to accept a licence first",
            f"do so at {page}, then run hf auth login and this command again",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(f"{what}: no such revision: {revision}", f"see {page}") from error
    except errors.RepositoryNotFoundError as error:
        raise _Refused(
            f"{what}: not found, or not for everyone",
            f"see {page}; where you may read it, run hf auth login first",
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise _Refused(f"{what}: the server answers {status}", "run hf auth login") from error
        raise WeightsError(f"{what}: the server answers {status}", "try again later") from error
    except OSError as error:
        if is_full(error):
            raise WeightsError(
                f"the disk is full: {home()}",
                "free some space and run the command again: it resumes where it stopped",
            ) from error
        reason = error.strerror or str(error).splitlines()[0]
        raise WeightsError(f"cannot fetch {what}: {reason}", "run the command again") from error
    except Exception as error:
        # the library's HTTP client raises its own errors, and its name changes with releases
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore"):
            raise
        raise WeightsError(
            f"cannot reach {_endpoint()}: {error}",
            "check the connection and run the command again: it resumes where it stopped",
        ) from error
