"""What Prometheus reads of the gateway itself: what it did, and which guests answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from xenpvd.gateway.guests import Guest


class Metrics:
    def __init__(self) -> None:
        #: (kind, HTTP status) of what was answered
        self.requests: Counter[tuple[str, int]] = Counter()

    def text(self, guests: Iterable[Guest], connections: int) -> str:
        """``connections`` to daemons are open."""
        return "".join(
            (
                *_family("xenpvd_up", "gauge", "Whether a guest's daemon answers."),
                *(f'xenpvd_up{{guest="{guest.name}"}} {int(guest.why is None)}\n' for guest in guests),
                *_family("xenpvd_gateway_connections", "gauge", "Connections to daemons."),
                f"xenpvd_gateway_connections {connections}\n",
                *_family("xenpvd_gateway_requests_total", "counter", "HTTP requests answered."),
                *(
                    f'xenpvd_gateway_requests_total{{kind="{kind}",code="{code}"}} {count}\n'
                    for (kind, code), count in sorted(self.requests.items())
                ),
            )
        )


def _family(name: str, kind: str, about: str) -> tuple[str, str]:
    return f"# HELP {name} {about}\n", f"# TYPE {name} {kind}\n"
