"""AK1 and the control conversation as bytes: nothing here touches a socket."""
