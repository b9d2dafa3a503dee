"""Hugging Face Space: the web page of hf_crystal, on a processor."""

if __name__ == "__main__":  # the processes that read crystals import this file too
    from hf_crystal.app.page import build_page, launch_page

    launch_page(build_page(), server_name="0.0.0.0")
