"""Tests of startup/export."""
