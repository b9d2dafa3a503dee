"""Hugging Face Space: the web page of hf_crystal, on a processor."""

from hf_crystal.app.page import build_page, launch_page

demo = build_page()

if __name__ == "__main__":
    launch_page(demo, server_name="0.0.0.0")
