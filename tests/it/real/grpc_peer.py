"""gRPC without generated code: the messages are plain bytes.

  grpc_peer.py serve PORT
  grpc_peer.py call HOST PORT CA      unary, 3 MB, bidirectional stream, error with trailing metadata
"""

import sys
from concurrent import futures

import grpc

SERVICE = "echo.Echo"
LIMITS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def unary(request, context):
    context.set_trailing_metadata((("x-served-by", "echo"),))
    return request


def stream(requests, context):
    for request in requests:
        yield request
    context.set_trailing_metadata((("x-stream", "over"),))


def fail(request, context):
    context.set_trailing_metadata((("x-why", "because"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today")


def serve(port):
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Stream": grpc.stream_stream_rpc_method_handler(stream),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
    }
    server = grpc.server(futures.ThreadPoolExecutor(8), options=LIMITS)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


def call(host, port, ca):
    with open(ca, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    # Connects here, but asks for the host in SNI and :authority.
    options = LIMITS + [
        ("grpc.ssl_target_name_override", host),
        ("grpc.default_authority", f"{host}:{port}"),
        ("grpc.enable_http_proxy", 0),
    ]
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
        method = channel.unary_unary(f"/{SERVICE}/Unary")
        answer, rpc = method.with_call(b"hello", timeout=30)
        assert answer == b"hello", answer
        assert ("x-served-by", "echo") in tuple(rpc.trailing_metadata()), rpc.trailing_metadata()
        print("unary ok")

        large = bytes(range(256)) * 12_000
        assert method(large, timeout=30) == large
        print("3 MB ok")

        messages = [b"%d" % index * 100 for index in range(200)]
        rpc = channel.stream_stream(f"/{SERVICE}/Stream")(iter(messages), timeout=30)
        assert list(rpc) == messages
        assert ("x-stream", "over") in tuple(rpc.trailing_metadata())
        print("stream ok")

        try:
            channel.unary_unary(f"/{SERVICE}/Fail")(b"x", timeout=30)
            raise SystemExit("an error was expected")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
            assert error.details() == "not today", error
            assert ("x-why", "because") in tuple(error.trailing_metadata())
        print("error ok")


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
else:
    call(sys.argv[2], int(sys.argv[3]), sys.argv[4])
