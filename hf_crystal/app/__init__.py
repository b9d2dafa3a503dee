"""The web page: `page` lays it out with Gradio, `service` does the work and knows nothing of Gradio."""
