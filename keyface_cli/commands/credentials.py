"""`keyface credentials`: a key and a certificate to sign results with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyface_cli.commands import console, options
from keyface_cli.credentials.certificates import Algorithm, new_key_pair
from keyface_cli.credentials.library import load_library

app = typer.Typer(
    name="credentials",
    no_args_is_help=True,
    help="Sign results, so that others can see who made them and whether they were changed.",
)

EXAMPLES = """\
[bold]Examples[/bold]

keyface credentials new -o keys --name "Jane Doe"

keyface animate portrait.png speech.wav --sign keys/cert.pem --key keys/key.pem
"""


@app.callback()
def credentials() -> None:
    """Sign results, so that others can see who made them and whether they were changed."""


@app.command(epilog=EXAMPLES)
def new(
    folder: Annotated[Path, options.writes("FOLDER", "Where to write them.")],
    name: Annotated[
        str, typer.Option(help="Whom readers show as the signer: a person or an organisation.")
    ] = "self-signed with keyface",
    algorithm: Annotated[
        Algorithm, typer.Option(help="How the key signs; every reader takes ES256.")
    ] = "ES256",
    days: Annotated[
        int, typer.Option(min=1, max=3650, help="How long the certificate is valid.")
    ] = 365,
) -> None:
    """Make a key and a certificate of your own for --sign, for trying out and for private use."""
    if not 1 <= len(name) <= 64:
        raise typer.BadParameter("1 to 64 characters", param_hint="--name")
    load_library()
    chain, key, root = new_key_pair(folder, name, algorithm, days)
    for path in (chain, key, root):
        typer.echo(path)
    console.report(
        "warning",
        "nobody vouches for this certificate: validators will call what it signs untrusted, "
        f"except where {root} is added to their list",
    )
    console.report(
        "hint",
        "a certificate that validators trust is issued by an authority on the C2PA trust list, to "
        "products of its conformance program: https://c2pa.org/conformance",
    )
    console.say(f"keep {key} to yourself; sign: keyface animate ... --sign {chain} --key {key}")
