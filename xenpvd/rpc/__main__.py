"""``python -m xenpvd.rpc`` prints the API's OpenRPC document, ``--markdown`` a page for people,
``--python NAME`` a module of ``xenpvd.client`` with its types."""

from __future__ import annotations

import json
import sys

from xenpvd.rpc import python_types
from xenpvd.rpc.methods import METHODS
from xenpvd.rpc.methods.daemon import document
from xenpvd.rpc.schema import markdown


def main() -> None:
    api = document()
    match sys.argv[1:]:
        case ["--markdown"]:
            text = markdown(api)
        case ["--python", name]:
            text = python_types.modules(api, METHODS)[name]
        case _:
            text = json.dumps(api, indent=2) + "\n"
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
