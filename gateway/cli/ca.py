"""`fleetgate ca`: the authorities that sign a product's devices: registered, proven, active, retiring, revoked."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.api import Api, ConfigOption, open_api
from gateway.cli.output import JsonOption, print_object, print_rows, say
from gateway.cli.product import ProductArgument
from provisioning.errors import ConflictError, InvalidError, NotFoundError

app = typer.Typer(no_args_is_help=True, help="Certificate authorities of products.")
CaArgument = Annotated[str, typer.Argument(metavar="CA", help="Name or id of the CA.")]
ProductOption = Annotated[
    str | None, typer.Option("--product", help="Its product, where several have a CA of that name.")
]
FileArgument = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Certificate in PEM.")]


@app.command()
def register(
    product: ProductArgument,
    file: FileArgument,
    name: Annotated[
        str | None, typer.Option(help="Its name. [default: the file's]", show_default=False)
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register a CA. The answer has a code that proves, in `ca prove`, that you hold its key."""
    body = {"name": name or file.stem.lower().replace("_", "-"), "certificate": read_pem(file)}
    with open_api(config) as api:
        made = api.post("products", product, "authorities", body=body)
    print_object(made, as_json=as_json)
    say(
        f"next: sign a certificate whose CN is {made.get('code', 'the code')} with this CA's key, "
        f"then `fleetgate ca prove {body['name']} FILE`"
    )


@app.command()
def prove(
    ca: CaArgument,
    file: FileArgument,
    product: ProductOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the certificate with the code as CN, signed by the CA: it proves that you hold the CA's key."""
    _command(config, ca, product, "prove", as_json=as_json, body={"certificate": read_pem(file)})
    say(f"next: fleetgate ca activate {ca}")


@app.command()
def activate(
    ca: CaArgument, product: ProductOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Let the broker trust a proven CA from the next handshake on, and its devices enroll."""
    _command(config, ca, product, "activate", as_json=as_json)


@app.command()
def retire(
    ca: CaArgument, product: ProductOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Let a CA's known devices work on, and enroll no new ones."""
    _command(config, ca, product, "retire", as_json=as_json)


@app.command()
def revoke(
    ca: CaArgument,
    product: ProductOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refuse every device of a CA at once. This cannot be taken back."""
    if not yes:
        typer.confirm(
            f"Refuse every device of CA {ca} from now on? This cannot be taken back.", abort=True, err=True
        )
    _command(config, ca, product, "revoke", as_json=as_json)


@app.command()
def show(
    ca: CaArgument, product: ProductOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Show one CA."""
    with open_api(config) as api:
        print_object(api.get("authorities", _find(api, ca, product)), as_json=as_json)


@app.command("list")
def list_(
    product: Annotated[str | None, typer.Argument(help="Only this product's.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List CAs."""
    with open_api(config) as api:
        rows = api.items("authorities", product=product)
    columns = [
        ("name", "name"),
        ("product", "product"),
        ("state", "state"),
        ("proven", "proven_at"),
        ("valid until", "not_after"),
        ("subject", "subject"),
        ("id", "id"),
    ]
    print_rows(rows, columns, as_json=as_json)


def read_pem(file: Path) -> str:
    """The text of a PEM file.

    Raises:
        InvalidError: it is none.
    """
    try:
        text = file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"{file} is not a certificate in PEM: {error}") from error
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise InvalidError(f"{file} is not a certificate in PEM: it has no BEGIN CERTIFICATE line")
    return text


def _command(
    config: Path | None, ca: str, product: str | None, verb: str, *, as_json: bool, body: Any = None
) -> None:
    with open_api(config) as api:
        answer = api.post("authorities", _find(api, ca, product), verb, body=body)
    print_object(answer, as_json=as_json)


def _find(api: Api, ca: str, product: str | None) -> str:
    """The id of the CA that is meant by a name or an id."""
    found = [row for row in api.items("authorities", product=product) if ca in (row["id"], row["name"])]
    match found:
        case [one]:
            return str(one["id"])
        case []:
            where = f"product {product}" if product else "this organization"
            raise NotFoundError(f"{where} has no CA {ca!r}; `fleetgate ca list` shows them")
        case _:
            raise ConflictError(f"several products have a CA {ca!r}: say --product, or its id")
