
-- The last part of the script that replaces a record.
--
-- KEYS[2]  the list of the circuit's history, if there are events
-- ARGV     7 g, 8 n (none: keep n and w), 9 w, 10 r, 11 what to publish (none: nothing)
--          12… events for the history

local g, n, w, r = ARGV[7], ARGV[8], ARGV[9], ARGV[10]
if n == '' then -- keep the counts
  n, w = old[4] or '0', old[5] or ''
end
local t = int(now)

local fields, fits = { 'v', v, 'g', g, 't', t, 'n', n, 'w', w }, #r <= #pieces * width
local function set(field, value, before)
  if value ~= '' or (before or '') ~= '' then
    table.insert(fields, field)
    table.insert(fields, value)
  end
end
set('r', fits and '' or r, old[6])
for i, piece in ipairs(pieces) do
  set(piece, fits and string.sub(r, (i - 1) * width + 1, i * width) or '', old[7 + i])
end
write(unpack(fields))
redis.call('PEXPIRE', key, int(life))
-- The rest uses pcall, because ACLs may forbid it. A message is only a
-- hint: other databases of the server also receive it.
for i = 12, #ARGV do
  redis.pcall('LPUSH', KEYS[2], ARGV[i])
  redis.pcall('LTRIM', KEYS[2], 0, 49)
  redis.pcall('EXPIRE', KEYS[2], 604800)
end
if ARGV[11] ~= '' then
  redis.pcall('PUBLISH', key, ARGV[11])
end
return reply('1', v, g, t, n, w, r)
