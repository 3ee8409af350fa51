"""``python -m xenpvd.rpc`` prints the API's OpenRPC document, ``--markdown`` a page for people."""

from __future__ import annotations

import json
import sys

from xenpvd.rpc.methods.daemon import document
from xenpvd.rpc.schema import markdown


def main() -> None:
    api = document()
    sys.stdout.write(markdown(api) if "--markdown" in sys.argv[1:] else json.dumps(api, indent=2) + "\n")


if __name__ == "__main__":
    main()
