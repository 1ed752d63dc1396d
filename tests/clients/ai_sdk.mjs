// Vercel's AI SDK over three routes of one server: a tool's loop and a schema filled in, whole and streamed.
// Arguments: the URL that ends in /v1, the model, the key. Prints one JSON object: what each case gave, or its error.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const [baseURL, model, apiKey] = process.argv.slice(2);
const models = {
  chat: createOpenAICompatible({ name: "plimsoll", baseURL, apiKey, supportsStructuredOutputs: true, includeUsage: true })(model),
  responses: createOpenAI({ baseURL, apiKey }).responses(model),
  messages: createAnthropic({ baseURL, apiKey })(model),
};
const tools = {
  get_temperature: tool({
    description: "The temperature in a city now.",
    inputSchema: z.object({ city: z.enum(["Paris", "Rome"]), unit: z.enum(["C"]) }),
    execute: async () => "21 degrees",
  }),
};
const person = z.object({ name: z.enum(["Anna", "Bert"]), age: z.number().int(), city: z.enum(["Paris", "Rome"]) });

async function run(stream, settings) {
  const errors = [];
  const common = { temperature: 0, maxOutputTokens: 100, maxRetries: 0, ...settings };
  const result = stream ? streamText({ ...common, onError: ({ error }) => errors.push(error) }) : await generateText(common);
  if (stream) await result.consumeStream();
  if (errors.length) throw errors[0];
  return result;
}

async function loop(model, stream) {
  const result = await run(stream, {
    model, tools, prompt: "What is the temperature in Paris?", stopWhen: stepCountIs(2),
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
  });
  const [called, last] = await result.steps;
  const usage = await result.totalUsage;
  return {
    calls: called.toolCalls.map((call) => [call.toolName, call.input]), reason: called.finishReason,
    results: called.toolResults.map((done) => done.output), text: last.text, used: usage.outputTokens,
  };
}

async function schema(model, stream) {
  const result = await run(stream, {
    model, output: Output.object({ schema: person }),
    prompt: "Anna is 31 years old and lives in Paris. Extract the person.",
  });
  return { person: await result.output };
}

const found = {};
for (const [route, model] of Object.entries(models))
  for (const [task, work] of Object.entries({ loop, schema }))
    for (const stream of [false, true])
      found[`${route} ${task} ${stream ? "streamed" : "whole"}`] = await work(model, stream).catch((error) => ({
        error: `${error}: ${error.responseBody ?? error.text ?? error.stack}`,
      }));
console.log(JSON.stringify(found));
