"""The web page and the servers.

`service` does the work of the page and knows nothing of Gradio, `page` lays it out; `tools` is what the servers offer,
`server` over HTTP, `assistant` over MCP. `reading` keeps what strangers send in processes of its own.
"""
