"""Run today's clients against a server, each in an environment of its own; tell what worked.

    .venv/bin/python -m tools.clients http://127.0.0.1:8080 [NAME …] [--model demo] [--folder DIR]

Each client is installed as it is published (pip, or npm where there is node), and does what its
users do: ask, stream, obey a schema, call a function. What is printed in the end is the table of
docs/server.md. Nothing of the answers' sense is looked at: small models err, but what they write
must come in the form that the client reads.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 1800.0
QUESTION = "What is 21 + 21? Use the function add."
# What all scripts of Python begin with.
_HEAD = f"""
import json, os
from pydantic import BaseModel
BASE, MODEL, ASK = os.environ["EVA_URL"] + "/v1", os.environ["EVA_MODEL"], {QUESTION!r}
MESSAGES = [dict(role="user", content=ASK)]
class Person(BaseModel):
    name: str
    age: int
WHO = "Anna is 31 years old. Who is she?"
FUNCTION = dict(name="add", description="Add two numbers", parameters=dict(type="object",
    properties=dict(a=dict(type="integer"), b=dict(type="integer")), required=["a", "b"]))
TOOL = dict(type="function", function=FUNCTION)
def ok(what, is_right=True):
    assert is_right, what
    print("ok", what, flush=True)
"""


@dataclass(frozen=True)
class Client:
    """A client: the packages it needs, the first of which is told, and what it does."""

    packages: tuple[str, ...]
    script: str


CLIENTS = {
    "openai": Client(
        ("openai",),
        """
from openai import OpenAI, pydantic_function_tool
c = OpenAI(base_url=BASE, api_key="none", max_retries=0)
chat = dict(model=MODEL, messages=MESSAGES, max_tokens=120)
ok("chat", c.chat.completions.create(**chat).choices[0].message.content)
parts = c.chat.completions.create(**chat, stream=True)
ok("stream", "".join(p.choices[0].delta.content or "" for p in parts if p.choices))
who = dict(model=MODEL, messages=[dict(role="user", content=WHO)])
made = c.chat.completions.parse(**who, response_format=Person)
ok("parse", isinstance(made.choices[0].message.parsed, Person))
tool = pydantic_function_tool(Person)
made = c.chat.completions.parse(**who, tools=[tool], tool_choice="required")
call = made.choices[0].message.tool_calls[0].function
ok("forced tool", isinstance(call.parsed_arguments, Person))
turns = list(MESSAGES)
said = c.chat.completions.create(**{**chat, "messages": turns}, tools=[TOOL]).choices[0].message
for call in said.tool_calls or ():
    result = str(sum(json.loads(call.function.arguments).values()))
    turns += [said, dict(role="tool", tool_call_id=call.id, content=result)]
said = c.chat.completions.create(**{**chat, "messages": turns}, tools=[TOOL]).choices[0].message
ok("tools over two turns", "<tool_call>" not in (said.content or ""))
ok("responses", c.responses.create(model=MODEL, input=WHO, max_output_tokens=60).output_text)
made = c.responses.parse(model=MODEL, input=WHO, text_format=Person)
ok("responses.parse", isinstance(made.output_parsed, Person))
tool = dict(type="function", **FUNCTION)
with c.responses.stream(model=MODEL, input=ASK, tools=[tool], tool_choice="required") as stream:
    kinds = [event.type for event in stream]
    ok("responses.stream, tool", stream.get_final_response().output[0].name == "add")
""",
    ),
    "litellm": Client(
        ("litellm",),
        """
from litellm import completion
how = dict(model=f"openai/{MODEL}", api_base=BASE, api_key="none", max_tokens=120)
ok("completion", completion(**how, messages=MESSAGES).choices[0].message.content)
parts = completion(**how, messages=MESSAGES, stream=True)
ok("stream", "".join(p.choices[0].delta.content or "" for p in parts))
made = completion(**how, messages=MESSAGES, tools=[TOOL], tool_choice="required")
ok("forced tool", made.choices[0].message.tool_calls[0].function.name == "add")
made = completion(**how, messages=MESSAGES, tools=[TOOL])
ok("tools", made.choices[0].finish_reason)
made = completion(**how, messages=[dict(role="user", content=WHO)], response_format=Person)
ok("schema", Person.model_validate_json(made.choices[0].message.content))
made = completion(model=f"ollama_chat/{MODEL}", api_base=os.environ["EVA_URL"],
    messages=MESSAGES, max_tokens=60)
ok("ollama_chat", made.choices[0].message.content)
""",
    ),
    "langchain-openai": Client(
        ("langchain-openai",),
        """
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
@tool
def add(a: int, b: int) -> int:
    "Add two numbers."
    return a + b
llm = ChatOpenAI(model=MODEL, base_url=BASE, api_key="none", max_retries=0, max_tokens=120)
ok("invoke", llm.invoke(ASK).content)
ok("stream", "".join(part.content for part in llm.stream(ASK)))
said = llm.bind_tools([add]).invoke(ASK)
ok("bind_tools", "<tool_call>" not in said.content)
said = llm.bind_tools([add], tool_choice="add").invoke(ASK)
ok("bind_tools, forced", add.invoke(said.tool_calls[0]).content)
ok("structured output", isinstance(llm.with_structured_output(Person).invoke(WHO), Person))
made = llm.with_structured_output(Person, method="function_calling").invoke(WHO)
ok("structured output by a function", isinstance(made, Person))
new = ChatOpenAI(model=MODEL, base_url=BASE, api_key="none", use_responses_api=True, max_tokens=60)
ok("responses", new.invoke(WHO).content)
""",
    ),
    "llama-index": Client(
        ("llama-index-llms-openai-like", "llama-index-llms-ollama"),
        """
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
llm = OpenAILike(model=MODEL, api_base=BASE, api_key="none", is_chat_model=True,
    is_function_calling_model=True, max_tokens=120, context_window=2048)
ok("chat", llm.chat([ChatMessage(role="user", content=ASK)]).message.content)
ok("structured output", isinstance(llm.as_structured_llm(Person).complete(WHO).raw, Person))
def add(a: int, b: int) -> int:
    "Add two numbers."
    return a + b
made = llm.chat_with_tools([FunctionTool.from_defaults(add)], ASK, tool_required=True)
ok("forced tool", llm.get_tool_calls_from_response(made)[0].tool_name == "add")
from llama_index.llms.ollama import Ollama
made = Ollama(model=MODEL, base_url=os.environ["EVA_URL"], request_timeout=600,
    additional_kwargs=dict(num_predict=60)).complete(WHO)
ok("ollama", made.text)
""",
    ),
    "pydantic-ai": Client(
        ("pydantic-ai-slim[openai]",),
        """
from pydantic_ai import Agent, UsageLimitExceeded, UsageLimits
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
provider = OpenAIProvider(base_url=BASE, api_key="none")
model = OpenAIChatModel(MODEL, provider=provider)
how = dict(model_settings=dict(max_tokens=120))
ok("text", Agent(model, **how).run_sync(WHO).output)
made = Agent(model, output_type=Person, **how).run_sync(WHO)
ok("structured output", isinstance(made.output, Person))
agent = Agent(model, retries=3, **how)
@agent.tool_plain
def add(a: int, b: int) -> int:
    "Add two numbers."
    return a + b
try:
    ok("tool", agent.run_sync(ASK, usage_limits=UsageLimits(request_limit=3)).output)
except UsageLimitExceeded:
    ok("tool, which the model calls again and again")
new = OpenAIResponsesModel(MODEL, provider=provider)
made = Agent(new, output_type=Person, **how).run_sync(WHO)
ok("responses", isinstance(made.output, Person))
""",
    ),
    "instructor": Client(
        ("instructor",),
        """
import instructor
from openai import OpenAI
client = instructor.from_openai(OpenAI(base_url=BASE, api_key="none"))
how = dict(model=MODEL, messages=[dict(role="user", content=WHO)], response_model=Person)
ok("response_model", isinstance(client.chat.completions.create(**how), Person))
parts = list(client.chat.completions.create_partial(**how))
ok("partial", parts[-1].age is not None)
""",
    ),
    "llm": Client(
        ("llm",),
        """
import pathlib, subprocess, sys, tempfile
home = pathlib.Path(tempfile.mkdtemp())
home.joinpath("extra-openai-models.yaml").write_text(
    f"- model_id: eva\\n  model_name: {MODEL}\\n  api_base: {BASE}\\n  supports_tools: true\\n")
def llm(*args):
    env = {**os.environ, "LLM_USER_PATH": str(home), "OPENAI_API_KEY": "none"}
    done = subprocess.run([sys.executable, "-m", "llm", *args], env=env, text=True,
        capture_output=True, stdin=subprocess.DEVNULL)
    is_right = done.returncode == 0 or "Chain limit" in done.stderr
    return done.stdout if is_right else ok(done.stderr, False)
ok("prompt", llm("-m", "eva", "-o", "max_tokens", "60", WHO))
function = "def add(a: int, b: int) -> int:\\n    'Add two numbers'\\n    return a + b"
said = llm("-m", "eva", "-o", "max_tokens", "120", "--functions", function, ASK)
ok("tool", "<tool_call>" not in said)
""",
    ),
    "ollama": Client(
        ("ollama",),
        """
import ollama
c = ollama.Client(host=os.environ["EVA_URL"])
ok("list", MODEL in [each.model for each in c.list().models])
ok("show", c.show(MODEL).capabilities)
how = dict(model=MODEL, options=dict(num_predict=120, temperature=0))
ok("chat", c.chat(messages=MESSAGES, **how).message.content)
ok("stream", "".join(p.message.content for p in c.chat(messages=MESSAGES, stream=True, **how)))
ok("generate", c.generate(prompt=WHO, **how).response)
made = c.generate(prompt=WHO, format=Person.model_json_schema(), **how)
ok("schema", Person.model_validate_json(made.response))
def add(a: int, b: int) -> int:
    "Add two numbers."
    return a + b
turns = list(MESSAGES)
said = c.chat(messages=turns, tools=[add], **how).message
for call in said.tool_calls or ():
    result = add(**call.function.arguments)
    turns += [said, dict(role="tool", tool_name="add", content=str(result))]
said = c.chat(messages=turns, tools=[add], **how).message
ok("tools over two turns", "<tool_call>" not in said.content)
""",
    ),
    "lm_eval": Client(
        ("lm_eval[api]",),
        """
import pathlib, subprocess, sys, tempfile
home = pathlib.Path(tempfile.mkdtemp())
rows = [dict(prompt=f"{a} + 1 =", choices=[f" {a + 1}", " many"], label=0) for a in range(4)]
home.joinpath("rows.jsonl").write_text("\\n".join(map(json.dumps, rows)))
home.joinpath("sums.yaml").write_text(f'''
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {home}/rows.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: choices
doc_to_target: label
target_delimiter: ""
metric_list: [{{metric: acc}}]
''')
args = f"model={MODEL},base_url={BASE}/completions,tokenizer_backend=remote"
args += ",tokenized_requests=True"
done = subprocess.run([sys.executable, "-m", "lm_eval", "run", "--model", "local-completions",
    "--tasks", "sums", "--include_path", str(home), "--model_args", args + ",max_length=512"],
    text=True, capture_output=True)
print(done.stderr[-3000:])
ok("multiple choice by echo", done.returncode == 0 and "acc" in done.stdout)
""",
    ),
    "guidellm": Client(
        ("guidellm",),
        """
import pathlib, subprocess, sys, tempfile
home = pathlib.Path(tempfile.mkdtemp())
rows = "\\n".join(json.dumps(dict(prompt=f"What is {n} + 1?")) for n in range(8))
home.joinpath("rows.jsonl").write_text(rows)
done = subprocess.run([str(pathlib.Path(sys.executable).parent / "guidellm"), "run",
    "--backend", f"kind=openai_http,target={os.environ['EVA_URL']},model={MODEL}",
    "--profile", "kind=synchronous", "--constraint", "kind=max_requests,count=3",
    "--data", f"kind=json_file,path={home}/rows.jsonl",
    "--output", f"kind=json,path={home}/out.json", "--disable-progress"],
    text=True, capture_output=True)
print(done.stdout[-3000:], done.stderr[-3000:])
ok("synchronous, 3 requests", done.returncode == 0)
""",
    ),
}
_NODE_HEAD = f"""
const URL = process.env.EVA_URL, MODEL = process.env.EVA_MODEL, ASK = {QUESTION!r};
const WHO = "Anna is 31 years old. Who is she?";
function ok(what, isRight) {{ if (!isRight) throw new Error(what); console.log("ok", what); }}
"""
NODE_CLIENTS = {
    "openai-node": Client(
        ("openai",),
        """
import OpenAI from "openai";
const client = new OpenAI({baseURL: URL + "/v1", apiKey: "none", maxRetries: 0});
const messages = [{role: "user", content: ASK}];
const parameters = {type: "object", properties: {a: {type: "integer"}, b: {type: "integer"}},
  required: ["a", "b"]};
const add = {type: "function", function: {name: "add", description: "Add two numbers", parameters,
  parse: JSON.parse, function: ({a, b}) => String(a + b)}};
const made = await client.chat.completions.create({model: MODEL, messages, max_tokens: 60});
ok("chat", made.choices[0].message.content);
const runner = client.chat.completions.runTools({model: MODEL, messages, tools: [add],
  max_tokens: 120});
ok("runTools", (await runner.finalContent()) !== undefined);
ok("responses", (await client.responses.create({model: MODEL, input: WHO,
  max_output_tokens: 60})).output_text);
""",
    ),
    "AI SDK": Client(
        ("ai", "@ai-sdk/openai-compatible", "zod"),
        """
import {createOpenAICompatible} from "@ai-sdk/openai-compatible";
import {generateObject, generateText, stepCountIs, streamText, tool} from "ai";
import {z} from "zod";
const provider = createOpenAICompatible({name: "eva", baseURL: URL + "/v1", apiKey: "none",
  supportsStructuredOutputs: true});
const model = provider(MODEL), maxOutputTokens = 120, maxRetries = 0;
ok("generateText", (await generateText({model, prompt: WHO, maxOutputTokens, maxRetries})).text);
let text = "";
const stream = streamText({model, prompt: WHO, maxOutputTokens, maxRetries}).textStream;
for await (const part of stream) text += part;
ok("streamText", text);
const schema = z.object({name: z.string(), age: z.number().int()});
const {object} = await generateObject({model, prompt: WHO, schema, maxRetries});
ok("generateObject", object.name !== undefined);
const inputSchema = z.object({a: z.number(), b: z.number()});
const add = tool({description: "Add two numbers", inputSchema, execute: async ({a, b}) => a + b});
const made = await generateText({model, prompt: ASK, tools: {add}, stopWhen: stepCountIs(3),
  maxOutputTokens, maxRetries});
ok("tools", !made.text.includes("<tool_call>"));
const forced = await generateText({model, prompt: ASK, tools: {add}, toolChoice: "required",
  maxOutputTokens, maxRetries});
ok("forced tool", forced.toolCalls.length === 1);
""",
    ),
}


def python_client(client: Client, home: Path) -> tuple[list[str], str]:
    """Install a client of Python; return how to run its script, and its version."""
    python = home / "bin" / "python"
    if not (home / "client.py").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        uv = ["uv", "pip", "install", "--python", str(python)]
        pip = uv if shutil.which("uv") else [str(python), "-m", "pip", "install"]
        subprocess.run([*pip, "--quiet", *client.packages, "pydantic"], check=True)
    script = home / "client.py"
    script.write_text(_HEAD + client.script)
    name = client.packages[0].partition("[")[0]
    asked = f"from importlib.metadata import version; print(version({name!r}))"
    found = subprocess.run([str(python), "-c", asked], check=True, text=True, capture_output=True)
    return [str(python), str(script)], found.stdout.strip()


def node_client(client: Client, home: Path) -> tuple[list[str], str]:
    """Install a client of JavaScript; return how to run its script, and its version."""
    if not (home / "node_modules").exists():
        home.mkdir(parents=True, exist_ok=True)
        npm = ["npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(home)]
        subprocess.run([*npm, *client.packages], check=True)
    script = home / "client.mjs"
    script.write_text(client.script.lstrip() + "\n")
    imports = [line for line in client.script.splitlines() if line.startswith("import")]
    rest = [line for line in client.script.splitlines() if not line.startswith("import")]
    script.write_text("\n".join([*imports, _NODE_HEAD, *rest]))
    asked = f"console.log(require('./node_modules/{client.packages[0]}/package.json').version)"
    found = subprocess.run(
        ["node", "-e", asked], cwd=home, check=True, text=True, capture_output=True
    )
    return ["node", str(script)], found.stdout.strip()


def outcome(command: list[str], url: str, model: str) -> str:
    """Run a client; return what worked, and what did not."""
    env = {**os.environ, "EVA_URL": url, "EVA_MODEL": model, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, check=False, env=env, text=True, capture_output=True, timeout=PATIENCE_S
    )
    worked = [line[3:] for line in done.stdout.splitlines() if line.startswith("ok ")]
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        lines = done.stderr.strip().splitlines()
        worked.append(f"**then: {lines[-1][:200] if lines else 'nothing'}**")
    return ", ".join(worked)


def main() -> None:
    """Run all clients, or those that are named, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("url")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--folder", type=Path, default=Path("clients"))
    parser.add_argument("--install-only", action="store_true")
    options = parser.parse_args()
    nodes = NODE_CLIENTS if shutil.which("npm") else {}
    rows = []
    for name, client in (CLIENTS | nodes).items():
        if options.names and name not in options.names:
            continue
        home = options.folder.resolve() / name.replace(" ", "-")
        install = node_client if name in nodes else python_client
        try:
            command, version = install(client, home)
            if options.install_only:
                continue
            rows.append(f"| {name} | {version} | {outcome(command, options.url, options.model)} |")
        except (subprocess.SubprocessError, OSError) as error:
            rows.append(f"| {name} | ? | **{error}** |")
        print(rows[-1], file=sys.stderr, flush=True)
    print("\n".join(["| client | version | what works |", "| --- | --- | --- |", *rows]))


if __name__ == "__main__":
    main()
