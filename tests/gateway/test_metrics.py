"""The figures, as Prometheus reads them."""

from __future__ import annotations

import re

from tests.gateway.conftest import PING, Host, Web, bearer, post

LINE = re.compile(r'(# (HELP|TYPE) \w+ .+|\w+(\{\w+="[^"\n]*"(,\w+="[^"\n]*")*\})? [0-9.]+)')


async def test_the_figures(web: Web, host: Host) -> None:
    await host.start("web3")
    host.services["web1"].labels = {"tenant": "blue"}
    (host.run_dir / "web2").mkdir()
    (host.run_dir / "web2/rpc-ro.sock").write_text("")
    await post(web, "viewer", PING)
    async with web.get("/v1/guests/web4/rpc", headers=bearer("viewer")) as reply:
        assert reply.status == 404
    async with web.ws_connect("/v1/guests/web1/rpc", headers=bearer("viewer")) as ws:
        await ws.receive_json(timeout=5)
        async with web.get("/metrics", headers=bearer("viewer")) as reply:
            assert reply.status == 200 and reply.headers["Content-Type"].startswith(
                "text/plain; version=0.0.4"
            )
            lines = (await reply.text()).splitlines()
    assert [line for line in lines if not LINE.fullmatch(line)] == []
    assert sum(line.startswith("# TYPE xenpvd_guest_state ") for line in lines) == 1
    assert {
        'xenpvd_guest_state{guest="web1",tenant="blue",state="running"} 1',
        'xenpvd_guest_state{guest="web3",state="running"} 1',
        'xenpvd_up{guest="web1"} 1',
        'xenpvd_up{guest="web2"} 0',
        "xenpvd_gateway_connections 1",
        'xenpvd_gateway_requests_total{kind="rpc",code="200"} 1',
        'xenpvd_gateway_requests_total{kind="calls",code="404"} 1',
    } <= set(lines)
