"""Where pixels come from. One folder or file a domain; `base` has the protocols that all of them keep."""
