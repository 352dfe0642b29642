"""Where units are worked on: in this process, in several on this machine, or on a cluster."""
