"""The MCP server of `hf-crystal serve --mcp`: predict, generate and describe as tools of an assistant, over stdio."""

from typing import TYPE_CHECKING, Any

from .. import __version__
from .reading import description_of
from .tools import (
    Candidates,
    Composition,
    Conditions,
    Count,
    Crystal,
    CrystalText,
    GenerateRequest,
    Model,
    Refused,
    Seed,
    SpaceGroup,
    Temperature,
    Tools,
    WithStability,
    faults_of,
)

if TYPE_CHECKING:
    from mcp.server import MCPServer

__all__ = ["build_assistant"]


def build_assistant(tools: Tools | None = None) -> "MCPServer":
    """The server; its `run()` answers on standard input and output until that is closed.

    Args:
        tools: what answers; the embedded models by default, loaded when they are first asked.

    Raises:
        ImportError: the package mcp is not installed.
    """
    try:
        from mcp.server import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
        from mcp.server.mcpserver.tools import Tool
        from pydantic import ValidationError
    except ImportError as error:
        raise ImportError("tools for assistants need the package mcp: pip install 'mcp>=2.3'") from error

    served = tools or Tools()

    def predict(crystal: CrystalText, model: Model = None, stability: WithStability = False) -> dict[str, Any]:
        """Predict properties of a crystal, such as formation energy and band gap, each with its unit and error."""
        try:
            (result,) = served.predict(served.read([Crystal(text=crystal)]), model, stability)
        except Refused as error:
            raise ToolError(str(error)) from error
        if "error" in result:
            raise ToolError(result["error"])
        return result

    def generate(
        composition: Composition = "",
        space_group: SpaceGroup = None,
        properties: Conditions = None,
        num: Count = 1,
        temperature: Temperature = None,
        seed: Seed = None,
        candidates: Candidates = None,
    ) -> list[dict[str, Any]]:
        """Generate crystals of a formula, known ones first, by energy, each with its CIF; source says where from."""
        request = GenerateRequest(
            composition=composition,
            space_group=space_group,
            properties=properties,
            num=num,
            temperature=temperature,
            seed=seed,
            candidates=candidates,
        )
        try:
            return served.generate(request)
        except Refused as error:
            raise ToolError(str(error)) from error

    def describe(crystal: CrystalText) -> dict[str, Any]:
        """Formula, space group, size and canonical sequence of a crystal, the same for all descriptions of it."""
        (found,) = served.read([Crystal(text=crystal)], description_of)
        if isinstance(found, str):
            raise ToolError(found)
        return dict(found)

    class Worded(Tool):
        """A tool whose refusals name field and reason, as the HTTP server's do."""

        async def run(self, arguments: dict[str, Any], *others: Any, **options: Any) -> Any:
            try:
                return await super().run(arguments, *others, **options)
            except ToolError as error:
                if not isinstance(error.__cause__, ValidationError):
                    raise
                faults = faults_of(error.__cause__.errors(), self.name)
                raise ToolError(f"Error executing tool {self.name}: {faults}") from error

    offered = [Worded.from_function(function) for function in (predict, generate, describe)]
    for tool in offered:  # a misspelled field is refused, not passed over
        arguments = tool.fn_metadata.arg_model
        arguments.model_config["extra"] = "forbid"
        arguments.model_rebuild(force=True)
        tool.parameters["additionalProperties"] = False
    offered[0].parameters["properties"]["model"]["description"] = f"One of {', '.join(served.models)}; else the first."
    return MCPServer("hf_crystal", version=__version__, log_level="ERROR", tools=offered)
