// Run by Node: what a client of OpenAI's API makes of a server, as JSON: a chat, a stream, a tool call and a schema.
//
//     node run.mjs openai|ai-sdk http://127.0.0.1:8000/v1

const [client, baseURL] = process.argv.slice(2);
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const person = {
  type: "object", properties: { name: { type: "string" }, age: { type: "integer" } }, required: ["name", "age"],
  additionalProperties: false,
};
const told = {};

if (client === "openai") {
  const { default: OpenAI } = await import("openai");
  const api = new OpenAI({ baseURL, apiKey: "none" });
  const ask = (content, more) => api.chat.completions.create({ model: "", temperature: 0, messages: [{ role: "user", content }], ...more });
  told.chat = (await ask("hello")).choices[0].message.content;
  told.stream = "";
  for await (const chunk of await ask("hello", { stream: true })) told.stream += chunk.choices[0]?.delta.content ?? "";
  const tools = [{ type: "function", function: { name: "weather", parameters } }];
  const { function: call } = (await ask("weather", { tools })).choices[0].message.tool_calls[0];
  told.tool = { name: call.name, args: JSON.parse(call.arguments) };
  const runner = api.chat.completions.stream({ model: "", temperature: 0, tools, messages: [{ role: "user", content: "weather" }] });
  const streamed = (await runner.finalMessage()).tool_calls[0].function;
  told.streamed_tool = { name: streamed.name, args: JSON.parse(streamed.arguments) };
  const response_format = { type: "json_schema", json_schema: { name: "person", schema: person, strict: true } };
  told.schema = JSON.parse((await ask("person", { response_format })).choices[0].message.content);
} else {
  const { generateObject, generateText, jsonSchema, streamText, tool } = await import("ai");
  const { createOpenAICompatible } = await import("@ai-sdk/openai-compatible");
  const model = createOpenAICompatible({ name: "steerfn", baseURL, supportsStructuredOutputs: true })("LlamaForCausalLM");
  const tools = { weather: tool({ description: "The weather.", inputSchema: jsonSchema(parameters) }) };
  told.chat = (await generateText({ model, temperature: 0, prompt: "hello" })).text;
  told.stream = "";
  for await (const piece of streamText({ model, temperature: 0, prompt: "hello" }).textStream) told.stream += piece;
  const [call] = (await generateText({ model, temperature: 0, prompt: "weather", tools })).toolCalls;
  told.tool = { name: call.toolName, args: call.input };
  const [streamed] = await streamText({ model, temperature: 0, prompt: "weather", tools }).toolCalls;
  told.streamed_tool = { name: streamed.toolName, args: streamed.input };
  told.schema = (await generateObject({ model, temperature: 0, prompt: "person", schema: jsonSchema(person) })).object;
}
console.log(JSON.stringify(told));
