"""The least that can be called an agent: a REP socket that echoes, on the port it is told. What the other launchers start."""

import sys

import zmq

socket = zmq.Context().socket(zmq.REP)
socket.bind(f"tcp://127.0.0.1:{sys.argv[1]}")
while True:
    socket.send(socket.recv())
