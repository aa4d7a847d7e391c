-- Record.Apply of state.go, line for line, on one hash of Redis; and a load.
--
-- KEYS[1]  the circuit's hash; its name is also the Pub/Sub channel
-- ARGV     1 kind: load, sync, report, acquire, settle or move
--          2 token
--          3 seen: a record
--          4 fail max, 5 reset timeout, 6 success threshold, 7 max trials, 8 trial timeout
--          9 failures, 10 cleared (0 or 1), 11 failures after   (report)
--          12 outcome (settle)
--          13 to (move)
--          14 how long a healthy record lingers, 15 how long any other outlives its deadlines
-- Reply    verdict, now, record, tokens; or an error that starts with BADRECORD
--
-- Durations and times are whole milliseconds, states and outcomes the numbers
-- of state.go. A record travels as one line, with durations for times:
--   schema state generation failures successes wait trial=left,trial=left|-
-- Numbers are doubles: they are only ever printed by int, never by tostring.

local SCHEMA = 1
local CLOSED, OPEN, HALF_OPEN = 0, 1, 2
local SUCCESS, FAILURE = 0, 1
local REFUSED, APPLIED, MOVED = 0, 1, 2
local MAX_TOKENS = 256
local MAX_LENGTH = 65536

local key, kind, token = KEYS[1], ARGV[1], ARGV[2]

local function arg(i) return tonumber(ARGV[i]) end
local function int(n) return string.format('%.0f', n) end

local limits = {
  failMax = arg(4), resetTimeout = arg(5), successThreshold = arg(6),
  maxTrials = arg(7), trialTimeout = arg(8),
}

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

-- The record in the hash. Its trials and tokens are arrays.

local FIELDS = { 'schema', 'state', 'generation', 'failures', 'successes', 'due', 'trials', 'tokens' }

local function zero()
  return { state = CLOSED, generation = 0, failures = 0, successes = 0, due = 0, trials = {}, tokens = {} }
end

local function bad(why)
  return nil, 'BADRECORD ' .. why
end

local function whole(s)
  if s and #s <= 16 and string.find(s, '^%d+$') then
    return tonumber(s)
  end
end

-- split reads trials whose deadlines are counted from since; joined writes them.

local function split(trials, since)
  local all = {}
  for id, left in string.gmatch(trials, '([^=,]+)=(%d+)') do
    table.insert(all, { id = id, deadline = since + tonumber(left) })
  end
  return all
end

local function joined(trials, since)
  local parts = {}
  for _, t in ipairs(trials) do
    table.insert(parts, t.id .. '=' .. int(math.max(t.deadline - since, 0)))
  end
  return table.concat(parts, ',')
end

local function load()
  for _, name in ipairs({ 'trials', 'tokens' }) do
    local length = redis.pcall('HSTRLEN', key, name)
    if type(length) ~= 'number' then
      return bad('is not a hash')
    end
    if length > MAX_LENGTH then
      return bad('has ' .. int(length) .. ' bytes of ' .. name)
    end
  end
  local values = redis.pcall('HMGET', key, unpack(FIELDS))
  if values.err then
    return bad('is not a hash')
  end
  local stored = {}
  local found = 0
  for i, name in ipairs(FIELDS) do
    if values[i] then
      stored[name] = values[i]
      found = found + 1
    end
  end
  if found == 0 and redis.call('EXISTS', key) == 0 then
    return zero()
  end
  local schema = whole(stored.schema)
  if schema and schema > SCHEMA then
    return bad('has schema ' .. int(schema) .. ', newer than ' .. int(SCHEMA))
  end
  if found < #FIELDS or schema ~= SCHEMA then
    return bad('lacks some of its fields')
  end
  local r = { trials = {}, tokens = {} }
  for _, name in ipairs({ 'state', 'generation', 'failures', 'successes', 'due' }) do
    r[name] = whole(stored[name])
    if not r[name] then
      return bad('has no whole number as its ' .. name)
    end
  end
  if r.state > HALF_OPEN then
    return bad('has no state of that number')
  end
  r.trials = split(stored.trials, 0)
  for _, t in ipairs(r.trials) do
    if not whole(int(t.deadline)) then
      return bad('has a trial without a deadline')
    end
  end
  for t in string.gmatch(stored.tokens, '[^,]+') do
    table.insert(r.tokens, t)
  end
  return r
end

local function save(r)
  if r.state == CLOSED and r.failures == 0 and r.generation == 0 then
    redis.call('DEL', key)
    return
  end
  redis.call('HSET', key, 'schema', int(SCHEMA), 'state', int(r.state),
    'generation', int(r.generation), 'failures', int(r.failures),
    'successes', int(r.successes), 'due', int(r.due),
    'trials', joined(r.trials, 0), 'tokens', table.concat(r.tokens, ','))
  -- A healthy record stays until it would have been due if it were still open:
  -- until then, whoever missed that it was closed takes its absence for a loss.
  local life = math.max(r.due - now, 0) + arg(14)
  if r.state ~= CLOSED or r.failures > 0 then
    local last = math.max(now, r.due)
    for _, t in ipairs(r.trials) do
      last = math.max(last, t.deadline)
    end
    life = last - now + arg(15)
  end
  redis.call('PEXPIRE', key, int(life))
end

local function line(r)
  local trials = joined(r.trials, now)
  if trials == '' then
    trials = '-'
  end
  local wait = 0
  if r.state == OPEN then
    wait = math.max(r.due - now, 0)
  end
  return table.concat({ int(SCHEMA), int(r.state), int(r.generation), int(r.failures),
    int(r.successes), int(wait), trials }, ' ')
end

-- parse reads what line writes.
local function parse(text)
  local n = {}
  for field in string.gmatch(text, '%S+') do
    table.insert(n, field)
  end
  local r = { state = tonumber(n[2]), generation = tonumber(n[3]), failures = tonumber(n[4]),
    successes = tonumber(n[5]), due = 0, trials = split(n[7], now), tokens = {} }
  if r.state == OPEN then
    r.due = now + tonumber(n[6])
  end
  return r
end

local seen = parse(ARGV[3])

-- Record.Apply. As there, a function returns the record and the verdict.

local function copy(r)
  local c = {}
  for k, v in pairs(r) do
    c[k] = v
  end
  return c
end

local function has(tokens)
  for _, t in ipairs(tokens) do
    if t == token then
      return true
    end
  end
  return false
end

-- filter returns the trials that keep says to keep.
local function filter(trials, keep)
  local kept = {}
  for _, t in ipairs(trials) do
    if keep(t) then
      table.insert(kept, t)
    end
  end
  return kept
end

local function isOther(t) return t.id ~= token end
local function isLive(t) return now < t.deadline end
local function isTrial(r) return #filter(r.trials, isOther) < #r.trials end

local function transition(r, to)
  local n = zero()
  n.state = to
  n.generation = math.max(r.generation + 1, seen.generation + 1, now)
  if to ~= CLOSED then
    n.failures = r.failures
  end
  if to == OPEN then
    n.due = now + limits.resetTimeout
  else
    n.due = r.due -- see save
  end
  return n
end

local function caughtUp(r)
  if seen.generation <= r.generation or (seen.state == CLOSED and r.state == CLOSED) then
    return copy(r)
  end
  return copy(seen)
end

local apply = {}

function apply.sync(r)
  return r, APPLIED
end

function apply.report(r)
  if r.state ~= CLOSED or seen.generation < r.generation then
    return r, REFUSED
  end
  if has(r.tokens) then
    return r, APPLIED
  end
  r.failures = r.failures + arg(9)
  if r.failures < limits.failMax and arg(10) == 1 then
    r.failures, r.tokens = 0, {}
  end
  if r.failures < limits.failMax then
    r.failures = r.failures + arg(11)
  end
  if r.failures >= limits.failMax then
    return transition(r, OPEN), MOVED
  end
  if r.failures > 0 then
    table.insert(r.tokens, token)
    if #r.tokens > MAX_TOKENS then
      table.remove(r.tokens, 1)
    end
  end
  return r, APPLIED
end

function apply.acquire(r)
  if isTrial(r) then
    return r, APPLIED
  end
  if r.state == OPEN and now >= r.due then
    r = transition(r, HALF_OPEN)
  end
  if r.state ~= HALF_OPEN or #r.trials >= limits.maxTrials then
    return r, REFUSED
  end
  table.insert(r.trials, { id = token, deadline = now + limits.trialTimeout })
  return r, APPLIED
end

function apply.settle(r)
  if seen.generation ~= r.generation or not isTrial(r) then
    return r, REFUSED
  end
  r.trials = filter(r.trials, isOther)
  local outcome = arg(12)
  if outcome == SUCCESS then
    r.successes = r.successes + 1
    if r.successes >= limits.successThreshold then
      r = transition(r, CLOSED)
    end
  elseif outcome == FAILURE then
    r = transition(r, OPEN)
  end
  return r, MOVED
end

function apply.move(r)
  local to = arg(13)
  if has(r.tokens) then
    return r, APPLIED
  end
  if r.state == CLOSED and to == CLOSED then
    local n = zero()
    n.generation, n.due = r.generation, r.due
    return n, APPLIED
  end
  r = transition(r, to)
  if to ~= CLOSED then
    r.tokens = { token }
  end
  return r, MOVED
end

local stored, problem = load()
if not stored then
  return redis.error_reply(problem)
end
if kind == 'load' then
  return { APPLIED, int(now), line(stored), table.concat(stored.tokens, ',') }
end

local record = caughtUp(stored)
record.trials = filter(record.trials, isLive)
local verdict
record, verdict = apply[kind](record)
if verdict == REFUSED then
  return { REFUSED, int(now), line(stored), table.concat(stored.tokens, ',') }
end
if record.generation ~= stored.generation then
  verdict = MOVED
end

save(record)
local told = line(record)
if verdict == MOVED then
  -- Last and in pcall: nothing may depend on whether publishing is permitted.
  redis.pcall('PUBLISH', key, told)
end
return { verdict, int(now), told, table.concat(record.tokens, ',') }
